# Command: torchrun --nproc-per-node 8 tools/train.py configs/segmentation/efficientvmamba/upernet_efficientvmamba_tiny_160k_ade20k.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 160000 steps; about 3 hours on A100 cards (an estimate from its FLOPs).
# Score: 38.9 mIoU, 39.3 at several scales (--tta) (published, arXiv 2403.09977).
# The official code has no segmentation; the recipe is that of the paper, which is VMamba's.
# The paper does not state the narrower heads; these widths give its parameters and FLOPs.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/upernet.py',
    '../../_base_/datasets/ade20k.py',
    '../../_base_/schedules/ade20k_160k.py',
    '../../_base_/segmentation_runtime.py',
]

model = dict(
    backbone=dict(name='efficientvmamba_tiny', drop_path_rate=0.1, pretrained=True),
    decode_head=dict(in_channels=[48, 96, 192, 384], channels=256),
    auxiliary_head=dict(in_channels=192))
