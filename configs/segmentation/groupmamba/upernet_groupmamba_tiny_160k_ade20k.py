# Command: torchrun --nproc-per-node 8 tools/train.py configs/segmentation/groupmamba/upernet_groupmamba_tiny_160k_ade20k.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 160000 steps; about 13 hours on A100 cards (an estimate from its FLOPs).
# Score: 48.6 mIoU, 49.2 at several scales (--tta) (published, arXiv 2407.13772).
# No code of the published detector and segmentor was released. Here: VMamba's recipe, with the drop path of the
# classifier.
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
        name='groupmamba_tiny',
        drop_path_rate=0.05,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/groupmamba_tiny.pth')),
    decode_head=dict(in_channels=[64, 128, 348, 448]),
    auxiliary_head=dict(in_channels=348))
