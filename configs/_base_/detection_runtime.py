# What every detector's training shares: mmdetection's runtime with our hooks (see default_runtime.py).
_base_ = 'mmdet::_base_/default_runtime.py'

custom_imports = dict(imports=['vssm.mm'])
default_hooks = dict(
    checkpoint=dict(type='PlainCheckpointHook', max_keep_ckpts=2, save_best='coco/bbox_mAP', rule='greater'),
    epoch=dict(type='EpochHook'),
    throughput=dict(type='ThroughputHook'),
    finite_loss=dict(type='FiniteLossHook'),
    progress=dict(type='ProgressBarHook'))
randomness = dict(seed=0)
visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
