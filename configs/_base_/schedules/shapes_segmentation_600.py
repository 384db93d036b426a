# As shapes_segmentation.py, for a segmentor of full size: 600 steps, bfloat16.
_base_ = './shapes_segmentation.py'

train_cfg = dict(max_iters=600, val_interval=300)
optim_wrapper = dict(
    type='Bfloat16OptimWrapper', optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, begin=0, end=50, by_epoch=False),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.01, begin=50, end=600, by_epoch=False),
]
