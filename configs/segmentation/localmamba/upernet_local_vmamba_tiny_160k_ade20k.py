# Command: torchrun --nproc-per-node 8 tools/train.py configs/segmentation/localmamba/upernet_local_vmamba_tiny_160k_ade20k.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 160000 steps; about 13 hours on A100 cards (an estimate from its FLOPs).
# Score: 47.9 mIoU (published, arXiv 2403.09338).
# No ImageNet weights are published: train the classifier first, and put its weights into the file named below.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/upernet.py',
    '../../_base_/datasets/ade20k.py',
    '../../_base_/schedules/ade20k_160k.py',
    '../../_base_/segmentation_runtime.py',
]

model = dict(
    backbone=dict(
        name='local_vmamba_tiny',
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/local_vmamba_tiny.pth')),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384))
