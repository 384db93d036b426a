# Command: torchrun --nproc-per-node 8 tools/train.py configs/segmentation/vssd/upernet_vssd_small_160k_ade20k.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 160000 steps; about 13 hours on A100 cards (an estimate from its FLOPs).
# Score: none is known here.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/upernet.py',
    '../../_base_/datasets/ade20k.py',
    '../../_base_/schedules/ade20k_160k.py',
    '../../_base_/segmentation_runtime.py',
]

model = dict(
    backbone=dict(name='vssd_small', drop_path_rate=0.4, pretrained=True),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256))
