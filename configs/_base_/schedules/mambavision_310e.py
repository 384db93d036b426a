# MambaVision's recipe: 300 epochs of cosine from 5e-3 (at 4096 images) to 5e-6, with 20 of warm-up from 1e-6, and 10
# more at the lowest rate; LAMB (arXiv 1904.00962) with gradients clipped at 5, averaged weights, mixed precision.
# Source: training scripts of NVlabs/MambaVision. LAMB itself divides gradients by their norm where that is above 1,
# timm's default. Official: from a quarter of the training on a second loss, MESA, draws the model towards the outputs of
# its averaged weights, by a factor of 0.5 for the tiny model and more for larger ones. Here: without it, so do not expect
# quite the published accuracy.
_base_ = './swin_300e.py'

train_cfg = dict(max_epochs=310)
auto_scale_lr = dict(base_batch_size=4096)
optim_wrapper = dict(optimizer=dict(_delete_=True, type='Lamb', lr=5e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=2e-4, begin=0, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-3, begin=20, end=300, convert_to_iter_based=True),
]
default_hooks = dict(ema=dict(momentum=2e-4))
