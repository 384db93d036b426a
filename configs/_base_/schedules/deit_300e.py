# Vim's recipe, which is DeiT's (arXiv 2012.12877): 300 epochs, 5 of warm-up, cosine by epochs from 1e-3 to 1e-5,
# AdamW without clipping, float32. Source: vim/main.py and vim/scripts of hustvl/Vim (its 10 cool-down epochs are
# never run). Official: the rate of an epoch is set one epoch late; the best raw weights are released. Here: on time,
# as timm does; the averaged weights are evaluated and kept, the raw ones lie beside them in each checkpoint.
_base_ = '../default_runtime.py'

train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
auto_scale_lr = dict(base_batch_size=1024)
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='GroupMatcherOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1))
param_scheduler = [
    dict(type='CosineAnnealingLR', T_max=300, eta_min_ratio=0.01, begin=0, end=301),
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=6),
]
default_hooks = dict(ema=dict(type='EMAHook', momentum=4e-5))
