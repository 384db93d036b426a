# Swin's recipe for COCO, which VMamba and its kin follow: 12 epochs, 1000 steps of warm-up, AdamW at 1e-4, ten times
# less after 8 and 11 epochs; no weight decay on norms. Source: detection/configs/swin of MzeroMiko/VMamba. 16 images
# a step.
_base_ = ['mmdet::_base_/schedules/schedule_1x.py', './norms_without_decay.py']

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(custom_keys=_base_._norms_without_decay))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
