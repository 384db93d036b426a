# UPerNet (arXiv 1807.10221) with an auxiliary head, on the maps at strides 4 to 32, each with a LayerNorm. A config
# names the backbone, and in the heads the channels of its maps.
_base_ = 'mmseg::_base_/models/upernet_swin.py'

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(_delete_=True, type='VSSMBackbone', out_indices=(0, 1, 2, 3), output_norm=True),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150))
