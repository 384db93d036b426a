# Command: torchrun --nproc-per-node 8 tools/train.py configs/detection/efficientvmamba/retinanet_efficientvmamba_tiny_1x_coco.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 12 epochs; about 5 hours on A100 cards (an estimate from its FLOPs).
# Score: 37.5 box AP (published, arXiv 2403.09977).
# Official: float16. Here: bfloat16.
# The official code has no RetinaNet; the recipe is that of its Mask R-CNN.
# The paper counts 13 M parameters, of a narrower detector that it does not describe.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/retinanet.py',
    '../../_base_/datasets/coco_detection.py',
    '../../_base_/schedules/coco_1x.py',
    '../../_base_/detection_runtime.py',
]

model = dict(
    backbone=dict(name='efficientvmamba_tiny', drop_path_rate=0.1, pretrained=True),
    neck=dict(in_channels=[96, 192, 384]))
optim_wrapper = dict(type='Bfloat16OptimWrapper')
