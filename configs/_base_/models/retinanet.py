# RetinaNet (arXiv 1708.02002) on the maps at strides 8 to 32, each with a LayerNorm. A config names the backbone, and
# in the neck the channels of these three maps.
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'

model = dict(
    backbone=dict(_delete_=True, type='VSSMBackbone', out_indices=(1, 2, 3), output_norm=True),
    neck=dict(start_level=0))
