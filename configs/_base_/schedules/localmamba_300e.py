# LocalMamba's recipe: EfficientVMamba's at half of its batch and rate: 300 epochs, 20 of warm-up from 1e-7, cosine from
# 1e-3 to 1e-6, AdamW with gradients clipped at 1, averaged weights, mixed precision. Source: README and configurations
# of hunto/LocalMamba. Official: clipping and averaged weights are listed as options, and mixed precision is on for
# LocalVMamba alone. Here: clipping and averaged weights are on, and LocalVim's configs say float32.
_base_ = './efficientvmamba_300e.py'

auto_scale_lr = dict(base_batch_size=1024)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, begin=0, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-3, begin=20, end=300, convert_to_iter_based=True),
]
