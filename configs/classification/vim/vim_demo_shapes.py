# Command: python tools/demo.py (or: make demo)
# Cost: 2 CPU cores, about 3 minutes.
# Score: above 90 % top-1 on images it has not been trained on.
# A small Vim on the embedded set at 64 pixels: 4 blocks of 96 channels and 8 states on 8 x 8 patches.
_base_ = ['../../_base_/datasets/shapes.py', '../../_base_/schedules/shapes.py']

model = dict(
    type='ImageClassifier',
    backbone=dict(
        model_name='vim_tiny', num_classes=10, img_size=64, patch_size=8, stride=8, embed_dim=96, depth=4, state=8),
    label_smoothing=0.1)
train_dataloader = dict(num_workers=1)
val_dataloader = dict(num_workers=1)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=6, val_interval=2)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    constructor='GroupMatcherOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.01, begin=1, end=6, convert_to_iter_based=True),
]
