# A short training on the embedded set: 30 epochs, cosine by steps with one epoch of warm-up, bfloat16 on a GPU that
# has it, gradients clipped. The weights are averaged over about 200 steps.
_base_ = '../default_runtime.py'

train_cfg = dict(by_epoch=True, max_epochs=30, val_interval=1)
auto_scale_lr = dict(base_batch_size=128)
optim_wrapper = dict(
    type='Bfloat16OptimWrapper',
    constructor='GroupMatcherOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.01, begin=1, end=30, convert_to_iter_based=True),
]
default_hooks = dict(ema=dict(type='EMAHook', momentum=5e-3), logger=dict(interval=20))
