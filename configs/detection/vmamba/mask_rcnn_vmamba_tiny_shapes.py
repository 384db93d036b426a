# Command: python tools/train.py configs/detection/vmamba/mask_rcnn_vmamba_tiny_shapes.py
# Cost: 1 GPU, about 3 minutes (an estimate; not measured yet).
# Score: not measured yet; the images are held out from training.
# The full-size model from scratch on embedded scenes of 512 pixels: a check of the whole path, without any download.
_base_ = [
    '../../_base_/models/mask_rcnn.py',
    '../../_base_/datasets/shapes_detection.py',
    '../../_base_/schedules/shapes_detection.py',
    '../../_base_/detection_runtime.py',
]

model = dict(
    backbone=dict(name='vmamba_tiny', drop_path_rate=0.1),
    neck=dict(in_channels=[96, 192, 384, 768]),
    roi_head=dict(bbox_head=dict(num_classes=10), mask_head=dict(num_classes=10)))
train_dataloader = dict(batch_size=16, num_workers=8, dataset=dict(image_size=512))
val_dataloader = dict(num_workers=8, dataset=dict(image_size=512))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=4, val_interval=2)
optim_wrapper = dict(
    type='Bfloat16OptimWrapper', optimizer=dict(lr=5e-4), clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, begin=0, end=100, by_epoch=False),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.01, begin=0, end=4, convert_to_iter_based=True),
]
