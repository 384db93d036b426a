# Command: torchrun --nproc-per-node 8 tools/train.py configs/segmentation/mambavision/upernet_mambavision_tiny_160k_ade20k.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 160000 steps; about 14 hours on A100 cards (an estimate from its FLOPs).
# Score: 46.0 mIoU (published, github.com/NVlabs/MambaVision).
# Official: drop path 0.2 whatever the configs say; larger windows than the classifier's; float16. Here: bfloat16.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/upernet.py',
    '../../_base_/datasets/ade20k.py',
    '../../_base_/schedules/ade20k_160k.py',
    '../../_base_/segmentation_runtime.py',
]

model = dict(
    backbone=dict(name='mambavision_tiny', drop_path_rate=0.2, pretrained=True, windows=[64, 32]),
    decode_head=dict(in_channels=[80, 160, 320, 640]),
    auxiliary_head=dict(in_channels=320))
optim_wrapper = dict(type='Bfloat16OptimWrapper', optimizer=dict(lr=5e-05))
