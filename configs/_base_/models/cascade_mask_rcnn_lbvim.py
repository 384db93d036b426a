# Vim's Cascade Mask R-CNN, but that the last map has a LayerNorm, boxes are refined for every class, and those of
# proposals have a smooth loss. Source: detection/configs/lbmamba of cvlab-stonybrook/LBMamba.
_base_ = './cascade_mask_rcnn_vim.py'

_box_heads = [
    dict(
        type='Shared4Conv1FCBBoxHead',
        in_channels=256,
        conv_out_channels=256,
        fc_out_channels=1024,
        roi_feat_size=7,
        num_classes=80,
        norm_cfg=dict(type='LN2d'),
        reg_class_agnostic=False,
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[xy, xy, wh, wh]),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=1.0)) for xy, wh in [(0.1, 0.2), (0.05, 0.1), (0.033, 0.067)]
]
model = dict(
    backbone=dict(output_norm=True),
    rpn_head=dict(loss_bbox=dict(_delete_=True, type='SmoothL1Loss', beta=1 / 9, loss_weight=1.0)),
    roi_head=dict(bbox_head=_box_heads))
