# Command: python tools/train.py configs/segmentation/vmamba/upernet_vmamba_tiny_shapes.py
# Cost: 1 GPU, about 3 minutes (an estimate; not measured yet).
# Score: not measured yet; the images are held out from training.
# The full-size model from scratch on embedded scenes of 512 pixels: a check of the whole path, without any download.
# Most pixels are background, which counts a tenth.
_base_ = [
    '../../_base_/models/upernet.py',
    '../../_base_/datasets/shapes_segmentation.py',
    '../../_base_/schedules/shapes_segmentation.py',
    '../../_base_/segmentation_runtime.py',
]

_loss = dict(class_weight=[0.1] + [1.0] * 10)
model = dict(
    backbone=dict(name='vmamba_tiny', drop_path_rate=0.1),
    decode_head=dict(num_classes=11, loss_decode=_loss),
    auxiliary_head=dict(num_classes=11, loss_decode=_loss))
train_dataloader = dict(batch_size=16, num_workers=8, dataset=dict(image_size=512))
val_dataloader = dict(num_workers=8, dataset=dict(image_size=512))
test_dataloader = val_dataloader
optim_wrapper = dict(
    type='Bfloat16OptimWrapper', optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=1.0))
train_cfg = dict(max_iters=600, val_interval=300)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, begin=0, end=50, by_epoch=False),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.01, begin=50, end=600, by_epoch=False),
]
