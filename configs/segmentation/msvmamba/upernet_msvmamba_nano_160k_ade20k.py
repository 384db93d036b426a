# Command: torchrun --nproc-per-node 8 tools/train.py configs/segmentation/msvmamba/upernet_msvmamba_nano_160k_ade20k.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 160000 steps; about 11 hours on A100 cards (an estimate from its FLOPs).
# Score: none is known here.
# The ImageNet weights lie in a folder that only a browser can open (see the model card): put them into the file named
# below.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/upernet.py',
    '../../_base_/datasets/ade20k.py',
    '../../_base_/schedules/ade20k_160k.py',
    '../../_base_/segmentation_runtime.py',
]

model = dict(
    backbone=dict(
        name='msvmamba_nano',
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/msvmamba_nano.pth')),
    decode_head=dict(in_channels=[48, 96, 192, 384]),
    auxiliary_head=dict(in_channels=192))
