# ViTDet's recipe (arXiv 2203.16527), which Vim follows: 184375 steps of 64 images, about 100 epochs, 250 of warm-up,
# AdamW at 1e-4, ten times less from step 163889 and again from 177546; rates decrease layer by layer towards the stem.
# Source: det/projects/ViTDet/configs/COCO of hustvl/Vim. Official: float16. Here: bfloat16, as it cannot overflow.
_base_ = 'mmdet::_base_/schedules/schedule_1x.py'

train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=184375, val_interval=5000)
optim_wrapper = dict(
    type='Bfloat16OptimWrapper',
    constructor='GroupMatcherOptimWrapperConstructor',
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
    paramwise_cfg=dict(layer_decay=0.837))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=250),
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=184375, milestones=[163889, 177546], gamma=0.1),
]
auto_scale_lr = dict(base_batch_size=64)
