# Mamba2D's recipe: 300 epochs, a twentieth of them of warm-up, cosine by steps from 4e-3 (at 4096 images) to 1e-6, AdamW
# without clipping, averaged weights, bfloat16; no weight decay on one-dimensional tensors and the scans' rates. Source:
# training code of cocoalex00/Mamba2D. Official: 64 steps of 64 images before the weights change. Here: 32 GPUs of 128
# images; with fewer, optim_wrapper.accumulative_counts adds steps up too.
_base_ = './swin_300e.py'

auto_scale_lr = dict(base_batch_size=4096)
optim_wrapper = dict(optimizer=dict(lr=4e-3), clip_grad=None)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, begin=0, end=15, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=2.5e-4, begin=15, end=300, convert_to_iter_based=True),
]
default_hooks = dict(ema=dict(momentum=1e-3))
