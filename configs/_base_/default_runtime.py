# What every training shares: hooks, evaluation, logs, seed. Commands, costs and scores stand in the configs that
# inherit this. A hook is changed or removed by its name: default_hooks = dict(progress=None).
custom_imports = dict(imports=['vssm.mm'])
default_scope = 'mmengine'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    checkpoint=dict(
        type='PlainCheckpointHook', interval=1, max_keep_ckpts=2, save_best='accuracy/top1', rule='greater'),
    epoch=dict(type='EpochHook'),
    throughput=dict(type='ThroughputHook'),
    finite_loss=dict(type='FiniteLossHook'),
    interrupt=dict(type='InterruptHook', seconds=25),
    progress=dict(type='ProgressBarHook'))

val_cfg = dict()
test_cfg = dict()
val_evaluator = dict(type='TopAccuracy', topk=(1, 5))
test_evaluator = dict(type='TopAccuracy', topk=(1, 5))

env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0))
randomness = dict(seed=0)
log_processor = dict(by_epoch=True, window_size=20)
visualizer = dict(
    type='Visualizer', vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
