# Command: torchrun --nnodes 2 --nproc-per-node 8 tools/train.py configs/segmentation/mambavision/upernet_mambavision_large3_512_21k_160k_ade20k_640.py --launcher pytorch
# Cost: 16 GPUs x 1 images, 160000 steps; about 52 hours on A100 cards (an estimate from its FLOPs).
# Score: 53.2 mIoU (published, github.com/NVlabs/MambaVision).
# Official: drop path 0.2 whatever the config says; larger windows than the classifier's; float32, as mixed precision
# was unstable.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/upernet.py',
    '../../_base_/datasets/ade20k_640.py',
    '../../_base_/schedules/ade20k_160k.py',
    '../../_base_/segmentation_runtime.py',
]

model = dict(
    backbone=dict(
        name='mambavision_large3_512_21k',
        drop_path_rate=0.2,
        pretrained=True,
        windows=[64, 32]),
    data_preprocessor=dict(size=[640, 640]),
    decode_head=dict(in_channels=[256, 512, 1024, 2048]),
    auxiliary_head=dict(in_channels=1024))
optim_wrapper = dict(optimizer=dict(lr=8e-05, weight_decay=0.05))
