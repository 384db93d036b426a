# Command: torchrun --nproc-per-node 8 tools/train.py configs/segmentation/vmamba/upernet_vanilla_vmamba_base_160k_ade20k.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 160000 steps; about 16 hours on A100 cards (an estimate from its FLOPs).
# Score: 50.0 mIoU, 51.3 at several scales (--tta) (published, github.com/MzeroMiko/VMamba).
# Official: drop path at the default of the code, 0.1, and not that of the classifier.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/upernet.py',
    '../../_base_/datasets/ade20k.py',
    '../../_base_/schedules/ade20k_160k.py',
    '../../_base_/segmentation_runtime.py',
]

model = dict(
    backbone=dict(name='vanilla_vmamba_base', drop_path_rate=0.1, pretrained=True),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512))
