# Command: python tools/train.py configs/segmentation/vmamba/upernet_vmamba_demo_shapes.py
# Cost: 2 CPU cores, 4.7 minutes.
# Score: 75.7 mIoU on held-out images.
# A small UPerNet from scratch on scenes of 96 pixels. Most pixels are background, which counts a tenth.
_base_ = [
    '../../_base_/models/upernet.py',
    '../../_base_/datasets/shapes_segmentation_albu.py',
    '../../_base_/schedules/shapes_segmentation.py',
    '../../_base_/segmentation_runtime.py',
]

_norm = dict(type='BN', requires_grad=True)
_loss = dict(class_weight=[0.1] + [1.0] * 10)
model = dict(
    data_preprocessor=dict(size=(96, 96)),
    backbone=dict(name='vmamba_tiny', dims=(32, 64, 128, 256), depths=(1, 1, 2, 1)),
    decode_head=dict(
        in_channels=[32, 64, 128, 256], channels=64, num_classes=11, norm_cfg=_norm, loss_decode=_loss),
    auxiliary_head=dict(in_channels=128, channels=64, num_classes=11, norm_cfg=_norm, loss_decode=_loss))
