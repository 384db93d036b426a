# Command: torchrun --nproc-per-node 8 tools/train.py configs/segmentation/hrvmamba/upernet_hrvmamba_base_160k_ade20k.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 160000 steps; about 16 hours on A100 cards (an estimate from its FLOPs).
# Score: 51.4 mIoU, 52.2 at several scales (--tta) (published, github.com/zhanghao5201/HRVMamba).
# Official: the heads read the maps of the classifier's neck and not those of the branches.
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
        name='hrvmamba_base',
        drop_path_rate=0.15,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/hrvmamba_base.pth'),
        neck_maps=True),
    decode_head=dict(in_channels=[128, 256, 512, 2048]),
    auxiliary_head=dict(in_channels=512))
