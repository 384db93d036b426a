# EfficientVMamba's recipe: 300 epochs, 20 of warm-up from 1e-7, cosine from 2e-3 to 1e-6, AdamW with gradients clipped
# at 1, averaged weights, mixed precision. Source: the official training logs (TerryPei/EfficientVMamba), not the
# configuration files beside them, which differ. Here: bfloat16 and cosine by steps, as for VMamba.
_base_ = './swin_300e.py'

auto_scale_lr = dict(base_batch_size=2048)
optim_wrapper = dict(optimizer=dict(lr=2e-3, weight_decay=0.04), clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=5e-5, begin=0, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=5e-4, begin=20, end=300, convert_to_iter_based=True),
]
