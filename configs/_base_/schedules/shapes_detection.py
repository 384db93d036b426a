# A short training of a detector from scratch on the embedded set: 3 epochs of 250 steps, cosine by steps with a short
# warm-up, a rate that suits few steps, gradients clipped.
_base_ = './coco_1x.py'

train_cfg = dict(max_epochs=3)
optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=10.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, begin=0, end=50, by_epoch=False),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.01, begin=0, end=3, convert_to_iter_based=True),
]
