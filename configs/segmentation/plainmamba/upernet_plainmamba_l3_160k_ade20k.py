# Command: torchrun --nproc-per-node 8 tools/train.py configs/segmentation/plainmamba/upernet_plainmamba_l3_160k_ade20k.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 160000 steps; about 6 hours on A100 cards (an estimate from its FLOPs).
# Score: 49.1 mIoU (published, github.com/ChenhongyiYang/PlainMamba).
# The four maps have one stride, 16 pixels, as officially. Official: the norm of the last map starts as the
# classifier's. Here: it starts anew, as the other three.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/upernet.py',
    '../../_base_/datasets/ade20k.py',
    '../../_base_/schedules/ade20k_160k.py',
    '../../_base_/segmentation_runtime.py',
]

model = dict(
    backbone=dict(
        name='plainmamba_l3',
        drop_path_rate=0.3,
        pretrained=True,
        out_indices=[8, 17, 26, 35]),
    decode_head=dict(in_channels=[448, 448, 448, 448]),
    auxiliary_head=dict(in_channels=448, in_index=3))
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys=dict(
            pos_embed=dict(decay_mult=0.0),
            A_log=dict(decay_mult=0.0),
            D=dict(decay_mult=0.0),
            B_of_move=dict(decay_mult=0.0))))
sync_bn = 'torch'
