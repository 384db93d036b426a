# VM-UNet's and MHS-VM's training: AdamW, 300 epochs of 1815 images in batches of 32. Official: the rate falls and rises
# in cosines of 50 epochs; here: it falls once, so that the last weights are the best.
_base_ = './ade20k_160k.py'

train_cfg = dict(max_iters=17000, val_interval=1000)
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.01))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, begin=0, end=100, by_epoch=False),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.01, begin=0, end=17000, by_epoch=False),
]
default_hooks = dict(checkpoint=dict(interval=1000))
auto_scale_lr = dict(base_batch_size=32)
