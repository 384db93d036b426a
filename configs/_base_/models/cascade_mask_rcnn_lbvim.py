# Vim's Cascade Mask R-CNN, but that the last map has a LayerNorm, boxes are refined for every class, and those of
# proposals have a smooth loss. Source: detection/configs/lbmamba of cvlab-stonybrook/LBMamba.
_base_ = './cascade_mask_rcnn_vim.py'

_box_heads = [dict(head, reg_class_agnostic=False) for head in _base_.model.roi_head.bbox_head]
model = dict(
    backbone=dict(output_norm=True),
    rpn_head=dict(loss_bbox=dict(_delete_=True, type='SmoothL1Loss', beta=1 / 9, loss_weight=1.0)),
    roi_head=dict(bbox_head=_box_heads))
