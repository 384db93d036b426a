# Command: torchrun --nproc-per-node 8 tools/train.py configs/detection/efficientvmamba/mask_rcnn_efficientvmamba_base_1x_coco.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 12 epochs; about 8 hours on A100 cards (an estimate from its FLOPs).
# Score: 43.7 box AP, 40.2 mask AP (published, arXiv 2403.09977).
# Official: float16. Here: bfloat16.
# The paper names another learning rate and drop path than the official configs, which are followed here.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/mask_rcnn.py',
    '../../_base_/datasets/coco_instance.py',
    '../../_base_/schedules/coco_1x.py',
    '../../_base_/detection_runtime.py',
]

model = dict(
    backbone=dict(name='efficientvmamba_base', drop_path_rate=0.1, pretrained=True),
    neck=dict(in_channels=[96, 192, 384, 768]))
optim_wrapper = dict(type='Bfloat16OptimWrapper')
