# Command: torchrun --nproc-per-node 8 tools/train.py configs/segmentation/lbmamba/upernet_lbvim_small_160k_ade20k.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 160000 steps; about 3 hours on A100 cards (an estimate from its FLOPs).
# Score: none is known here.
# Norms with mean and bias, as officially, which start from those of the classifier. Official: 2 GPUs of 8 images.
# No ImageNet weights are published: train the classifier first, and put its weights into the file named below.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/upernet.py',
    '../../_base_/datasets/ade20k.py',
    '../../_base_/schedules/ade20k_160k.py',
    '../../_base_/segmentation_runtime.py',
]

model = dict(
    backbone=dict(
        name='lbvim_small',
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/lbvim_small.pth'),
        out_indices=[5, 11, 17, 23],
        img_size=512,
        layer_norm=True),
    decode_head=dict(in_channels=[384, 384, 384, 384]),
    auxiliary_head=dict(in_channels=384),
    test_cfg=dict(mode='slide', crop_size=[512, 512], stride=[341, 341]))
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys=dict(
            pos_embed=dict(decay_mult=0.0),
            A_log=dict(decay_mult=0.0),
            D=dict(decay_mult=0.0))))
