# Swin's recipe for ADE20K, which VMamba and its kin follow: 160000 steps, 1500 of warm-up, AdamW from 6e-5 linearly to
# zero; no weight decay on norms. Source: segmentation/configs/swin of MzeroMiko/VMamba. 16 images a step.
_base_ = ['mmseg::_base_/schedules/schedule_160k.py', './norms_without_decay.py']

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(custom_keys=_base_._norms_without_decay))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=160000),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)
default_hooks = dict(
    checkpoint=dict(
        type='PlainCheckpointHook', max_keep_ckpts=2, save_best='mIoU', rule='greater'),
    epoch=dict(type='EpochHook'),
    throughput=dict(type='ThroughputHook'),
    finite_loss=dict(type='FiniteLossHook'),
    progress=dict(type='ProgressBarHook'))
