# Command: torchrun --nproc-per-node 8 tools/train.py configs/detection/msvmamba/mask_rcnn_msvmamba_nano_1x_coco.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 12 epochs; about 5 hours on A100 cards (an estimate from its FLOPs).
# Score: none is known here.
# The ImageNet weights lie in a folder that only a browser can open (see the model card): put them into the file named
# below.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/mask_rcnn.py',
    '../../_base_/datasets/coco_instance.py',
    '../../_base_/schedules/coco_1x.py',
    '../../_base_/detection_runtime.py',
]

model = dict(
    backbone=dict(
        name='msvmamba_nano',
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/msvmamba_nano.pth')),
    neck=dict(in_channels=[48, 96, 192, 384]))
