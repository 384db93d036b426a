# Mask R-CNN (arXiv 1703.06870) on the maps at strides 4 to 32, each with a LayerNorm. A config names the backbone, and
# in the neck the channels of its maps.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(backbone=dict(_delete_=True, type='VSSMBackbone', out_indices=(0, 1, 2, 3), output_norm=True))
