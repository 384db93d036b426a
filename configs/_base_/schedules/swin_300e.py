# VMamba's recipe, which is Swin's (arXiv 2103.14030): 300 epochs, 20 of warm-up, cosine by steps from 1e-3 to 1e-5,
# AdamW with gradients clipped at 5, averaged weights, mixed precision. Source: classification/config.py of
# MzeroMiko/VMamba. Official: float16 with loss scaling. Here: bfloat16, because the scan is reported to overflow in
# float16 (VMamba issue 138); --amp fp16 is the official way.
_base_ = '../default_runtime.py'

train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
auto_scale_lr = dict(base_batch_size=1024)
optim_wrapper = dict(
    type='Bfloat16OptimWrapper',
    constructor='GroupMatcherOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.01, begin=20, end=300, convert_to_iter_based=True),
]
default_hooks = dict(ema=dict(type='EMAHook', momentum=1e-4))
