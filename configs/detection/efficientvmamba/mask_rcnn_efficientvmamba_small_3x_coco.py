# Command: torchrun --nproc-per-node 8 tools/train.py configs/detection/efficientvmamba/mask_rcnn_efficientvmamba_small_3x_coco.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 36 epochs; about 12 hours on A100 cards (an estimate from its FLOPs).
# Score: 41.6 box AP, 38.2 mask AP (published, arXiv 2403.09977).
# Official: float16. Here: bfloat16.
# The paper names another learning rate and drop path than the official configs, which are followed here.
# Official: other widths than the released classifier has. Here: the released one.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/mask_rcnn.py',
    '../../_base_/datasets/coco_multiscale.py',
    '../../_base_/schedules/coco_3x.py',
    '../../_base_/detection_runtime.py',
]

model = dict(
    backbone=dict(name='efficientvmamba_small', drop_path_rate=0.1, pretrained=True),
    neck=dict(in_channels=[64, 128, 256, 512]))
optim_wrapper = dict(type='Bfloat16OptimWrapper')
