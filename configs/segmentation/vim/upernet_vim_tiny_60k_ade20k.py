# Command: torchrun --nproc-per-node 4 tools/train.py configs/segmentation/vim/upernet_vim_tiny_60k_ade20k.py --launcher pytorch
# Cost: 4 GPUs x 8 images, 60000 steps; about 3 hours on A100 cards (an estimate from its FLOPs).
# Score: 41.0 mIoU (published, arXiv 2401.09417).
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/upernet_vim.py',
    '../../_base_/datasets/ade20k.py',
    '../../_base_/schedules/vim_ade20k_60k.py',
    '../../_base_/segmentation_runtime.py',
]

model = dict(
    backbone=dict(name='vim_tiny', drop_path_rate=0.1, pretrained=True),
    neck=dict(embed_dim=192),
    decode_head=dict(in_channels=[192, 192, 192, 192], channels=192),
    auxiliary_head=dict(in_channels=192))
train_dataloader = dict(batch_size=8)
optim_wrapper = dict(optimizer=dict(lr=0.0002, weight_decay=0.1))
