# Command: torchrun --nproc-per-node 8 tools/train.py configs/segmentation/vssd/upernet_vssd_micro_160k_ade20k.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 160000 steps; about 12 hours on A100 cards (an estimate from its FLOPs).
# Score: 45.6 mIoU, 46.0 at several scales (--tta) (published, github.com/YuHengsss/VSSD).
# The authors released no config of this segmentor. Here: the drop path of their detectors of this model.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/upernet.py',
    '../../_base_/datasets/ade20k.py',
    '../../_base_/schedules/ade20k_160k.py',
    '../../_base_/segmentation_runtime.py',
]

model = dict(
    backbone=dict(name='vssd_micro', drop_path_rate=0.1, pretrained=True),
    decode_head=dict(in_channels=[48, 96, 192, 384]),
    auxiliary_head=dict(in_channels=192))
