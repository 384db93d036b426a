# What every segmentor's training shares: mmsegmentation's runtime with our hooks (see default_runtime.py). The other
# hooks come with a schedule, which counts iterations.
_base_ = 'mmseg::_base_/default_runtime.py'

custom_imports = dict(imports=['vssm.mm'])
randomness = dict(seed=0)
visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
