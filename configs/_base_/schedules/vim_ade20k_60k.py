# Vim's recipe for ADE20K, after BEiT's: 60000 steps of 32 images, 1500 of warm-up, AdamW linearly to zero; rates
# decrease layer by layer towards the stem. Source: seg/configs and seg/scripts of hustvl/Vim. Official: the code looks
# for layers under a name that Vim's do not have, so all but the embeddings train at the full rate. Here: the decrease
# that was meant.
_base_ = './ade20k_160k.py'

train_cfg = dict(max_iters=60000, val_interval=6000)
optim_wrapper = dict(
    constructor='GroupMatcherOptimWrapperConstructor',
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(_delete_=True, layer_decay=0.92))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=60000),
]
auto_scale_lr = dict(base_batch_size=32)
default_hooks = dict(checkpoint=dict(interval=6000))
