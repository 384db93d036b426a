# Command: torchrun --nproc-per-node 8 tools/train.py configs/detection/plainmamba/retinanet_plainmamba_l1_1x_coco.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 12 epochs; about 7 hours on A100 cards (an estimate from its FLOPs).
# Score: 41.7 box AP (published, github.com/ChenhongyiYang/PlainMamba).
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/retinanet_adapter.py',
    '../../_base_/datasets/coco_detection.py',
    '../../_base_/schedules/coco_1x.py',
    '../../_base_/detection_runtime.py',
]

model = dict(
    backbone=dict(
        name='plainmamba_l1',
        drop_path_rate=0.1,
        pretrained=True,
        out_indices=[5, 11, 17, 23]),
    neck=dict(in_channels=[192, 192, 192, 192]))
optim_wrapper = dict(
    clip_grad=dict(max_norm=35.0),
    paramwise_cfg=dict(
        custom_keys=dict(
            level_embed=dict(decay_mult=0.0),
            pos_embed=dict(decay_mult=0.0),
            bias=dict(decay_mult=0.0),
            A_log=dict(decay_mult=0.0),
            D=dict(decay_mult=0.0),
            B_of_move=dict(decay_mult=0.0))))
sync_bn = 'torch'
