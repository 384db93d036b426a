# Mask R-CNN as in ViTDet (arXiv 2203.16527): a simple pyramid of the last map, which has a LayerNorm, and convolutional
# heads with LayerNorm. Source: detection/configs/local_mamba of hunto/LocalMamba, whose files and tables call it a
# Cascade Mask R-CNN: its base is mmdetection's Mask R-CNN, and so it has one box head.
_base_ = './mask_rcnn.py'

_norm = dict(type='LN2d')
model = dict(
    data_preprocessor=dict(batch_augments=[dict(type='BatchFixedSizePad', size=(1024, 1024), pad_mask=True)]),
    backbone=dict(out_indices=(-1, ), img_size=1024),
    neck=dict(_delete_=True, type='SimpleFeaturePyramid', out_channels=256, num_outs=5),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=_norm),
        mask_head=dict(norm_cfg=_norm)))
