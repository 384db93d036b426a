# Command: python tools/demo.py (or: make demo)
# Cost: 2 CPU cores, 3 to 4 minutes.
# Score: about 95 % top-1 on images it has not been trained on (a linear classifier on pixels: see the demo's output).
# A small Vim on the embedded set at 64 pixels: 4 blocks of 64 channels and 8 states on 8 x 8 patches. Narrow and with
# images only mirrored, because that learns most in a few hundred steps.
_base_ = ['../../_base_/datasets/shapes.py', '../../_base_/schedules/shapes.py']

model = dict(
    type='ImageClassifier',
    backbone=dict(
        name='vim_tiny', num_classes=10, img_size=64, patch_size=8, stride=8, embed_dim=64, depth=4, state=8))
train_dataloader = dict(
    num_workers=1, dataset=dict(transform=dict(scale=(1.0, 1.0), ratio=(1.0, 1.0), vflip=0.0)))
val_dataloader = dict(num_workers=1)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=6, val_interval=6)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.01, begin=1, end=6, convert_to_iter_based=True),
]
default_hooks = dict(ema=None)
