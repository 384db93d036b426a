# Command: python tools/train.py configs/detection/efficientvmamba/retinanet_efficientvmamba_demo_shapes.py
# Cost: 2 CPU cores, 6 minutes.
# Score: 0.68 box AP at IoU 0.5 on held-out images.
# A small RetinaNet from scratch on scenes of 96 pixels, with anchors from 16 pixels on.
_base_ = [
    '../../_base_/models/retinanet.py',
    '../../_base_/datasets/shapes_detection.py',
    '../../_base_/schedules/shapes_detection.py',
    '../../_base_/detection_runtime.py',
]

model = dict(
    backbone=dict(name='efficientvmamba_tiny', dims=(32, 64, 128, 256), depths=(1, 1, 2, 1)),
    neck=dict(in_channels=[64, 128, 256], out_channels=64, num_outs=4),
    bbox_head=dict(
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        num_classes=10,
        anchor_generator=dict(octave_base_scale=2, strides=[8, 16, 32, 64])),
    test_cfg=dict(nms_pre=200, max_per_img=20))
train_cfg = dict(max_epochs=6, val_interval=3)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, begin=0, end=50, by_epoch=False),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.01, begin=0, end=6, convert_to_iter_based=True),
]
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
