# Command: torchrun --nproc-per-node 4 tools/train.py configs/segmentation/vim/upernet_vim_small_60k_ade20k.py --launcher pytorch
# Cost: 4 GPUs x 8 images, 60000 steps; about 12 hours on A100 cards (an estimate from its FLOPs).
# Score: 44.9 mIoU (published, arXiv 2401.09417).
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/upernet_vim.py',
    '../../_base_/datasets/ade20k.py',
    '../../_base_/schedules/vim_ade20k_60k.py',
    '../../_base_/segmentation_runtime.py',
]

model = dict(
    backbone=dict(name='vim_small', drop_path_rate=0.1, pretrained=True),
    neck=dict(embed_dim=384),
    decode_head=dict(in_channels=[384, 384, 384, 384], channels=384),
    auxiliary_head=dict(in_channels=384))
train_dataloader = dict(batch_size=8)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=0.95))
