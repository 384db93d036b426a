# As shapes_detection.py, for a detector of full size: 4 epochs of 125 steps, bfloat16.
_base_ = './shapes_detection.py'

train_cfg = dict(max_epochs=4, val_interval=2)
optim_wrapper = dict(
    type='Bfloat16OptimWrapper', optimizer=dict(lr=5e-4), clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, begin=0, end=100, by_epoch=False),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.01, begin=0, end=4, convert_to_iter_based=True),
]
