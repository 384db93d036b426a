# A short training of a segmentor from scratch on the embedded set: 1200 steps, cosine with a short warm-up, a rate that
# suits few steps, gradients clipped.
_base_ = './ade20k_160k.py'

train_cfg = dict(max_iters=1200, val_interval=400)
optim_wrapper = dict(optimizer=dict(lr=3e-3), clip_grad=dict(_delete_=True, max_norm=10.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, begin=0, end=50, by_epoch=False),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.01, begin=0, end=1200, by_epoch=False),
]
default_hooks = dict(checkpoint=dict(interval=400))
