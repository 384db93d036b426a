# RSMamba's recipe: 500 epochs, 10 of warm-up, cosine by steps from 5e-4 to 1e-5, AdamW, 1024 images. Source: paper and
# configs of KyanChen/RSMamba. Official: float32, without averaged weights. Here: the same.
_base_ = '../default_runtime.py'

train_cfg = dict(by_epoch=True, max_epochs=500, val_interval=5)
auto_scale_lr = dict(base_batch_size=1024)
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='GroupMatcherOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=5e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=10, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.02, begin=10, end=500, convert_to_iter_based=True),
]
