# Command: torchrun --nproc-per-node 8 tools/train.py configs/segmentation/localmamba/upernet_local_vim_small_searched_160k_ade20k.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 160000 steps; about 3 hours on A100 cards (an estimate from its FLOPs).
# Score: 46.4 mIoU (published, arXiv 2403.09338).
# Norms with mean and bias, as officially, which start from those of the classifier. Official: maps are the outputs of
# single mixers. Here: the residual stream.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/upernet.py',
    '../../_base_/datasets/ade20k.py',
    '../../_base_/schedules/ade20k_160k.py',
    '../../_base_/segmentation_runtime.py',
]

model = dict(
    backbone=dict(
        name='local_vim_small_searched',
        drop_path_rate=0.1,
        pretrained=True,
        out_indices=[4, 9, 14, 19],
        img_size=512,
        layer_norm=True),
    decode_head=dict(in_channels=[384, 384, 384, 384]),
    auxiliary_head=dict(in_channels=384, in_index=3))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(pos_embed=dict(decay_mult=0.0))))
