# Command: torchrun --nproc-per-node 8 tools/train.py configs/classification/spatialmamba/spatialmamba_small_in1k.py --launcher pytorch
# Cost: 8 GPUs x 128 images, 300 epochs; hours are not published and have not been measured here.
# Score: 84.6 % top-1 (published, github.com/EdwardChasel/Spatial-Mamba).
# From epoch 75 on a second loss, MESA, draws the model towards the outputs of its averaged weights.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/datasets/imagenet_swin.py',
    '../../_base_/schedules/swin_300e.py',
]

model = dict(
    backbone=dict(name='spatialmamba_small', drop_path_rate=0.3, num_classes=1000),
    type='ImageClassifier')
default_hooks = dict(mesa=dict(type='MESAHook', factor=1.5))
