# Cascade Mask R-CNN as in ViTDet (arXiv 2203.16527): a simple pyramid of the last map, convolutional heads with
# LayerNorm, class-agnostic refinement of boxes. Source: det/configs/common/models/mask_rcnn_vimdet.py of hustvl/Vim.
# Official: no class token. Here: it stays in the middle of the tokens, where the ImageNet weights have it.
_base_ = './cascade_mask_rcnn.py'

_box_heads = [
    dict(
        type='Shared4Conv1FCBBoxHead',
        in_channels=256,
        conv_out_channels=256,
        fc_out_channels=1024,
        roi_feat_size=7,
        num_classes=80,
        norm_cfg=dict(type='LN2d'),
        reg_class_agnostic=True,
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[xy, xy, wh, wh]),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=1.0)) for xy, wh in [(0.1, 0.2), (0.05, 0.1), (0.033, 0.067)]
]
model = dict(
    data_preprocessor=dict(batch_augments=[dict(type='BatchFixedSizePad', size=(1024, 1024), pad_mask=True)]),
    backbone=dict(out_indices=(23, ), output_norm=False, img_size=1024),
    neck=dict(_delete_=True, type='SimpleFeaturePyramid', out_channels=256, num_outs=5),
    rpn_head=dict(num_convs=2, loss_bbox=dict(_delete_=True, type='L1Loss', loss_weight=1.0)),
    roi_head=dict(bbox_head=_box_heads, mask_head=dict(norm_cfg=dict(type='LN2d'))))
