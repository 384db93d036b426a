# Command: torchrun --nproc-per-node 8 tools/train.py configs/detection/vmamba/cascade_mask_rcnn_vmamba_tiny_s1l8_3x_coco.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 36 epochs; about 23 hours on A100 cards (an estimate from its FLOPs).
# Score: none is known here.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/cascade_mask_rcnn.py',
    '../../_base_/datasets/coco_multiscale.py',
    '../../_base_/schedules/coco_3x.py',
    '../../_base_/detection_runtime.py',
]

model = dict(
    backbone=dict(name='vmamba_tiny_s1l8', drop_path_rate=0.2, pretrained=True),
    neck=dict(in_channels=[96, 192, 384, 768]))
