# Command: torchrun --nproc-per-node 8 tools/train.py configs/segmentation/mamba2d/upernet_mamba2d_small_160k_ade20k.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 160000 steps; about 17 hours on A100 cards (an estimate from its FLOPs).
# Score: 51.7 mIoU, 51.8 at several scales (--tta) (published, github.com/cocoalex00/Mamba2D).
# The maps end in the model's own norms, so that the backbone adds none.
# Official: two steps of 8 images before the weights change. Here: as many images in one step.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/upernet.py',
    '../../_base_/datasets/ade20k.py',
    '../../_base_/schedules/ade20k_160k.py',
    '../../_base_/segmentation_runtime.py',
]

model = dict(
    backbone=dict(name='mamba2d_small', drop_path_rate=0.2, pretrained=True, output_norm=False),
    decode_head=dict(in_channels=[96, 192, 384, 576]),
    auxiliary_head=dict(in_channels=384))
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    clip_grad=dict(_delete_=True, max_norm=1.0))
