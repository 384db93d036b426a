# Command: torchrun --nproc-per-node 8 tools/train.py configs/detection/vssd/mask_rcnn_vssd_tiny_1x_coco.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 12 epochs; about 8 hours on A100 cards (an estimate from its FLOPs).
# Score: 46.9 box AP, 42.6 mask AP (published, github.com/YuHengsss/VSSD).
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/mask_rcnn.py',
    '../../_base_/datasets/coco_instance.py',
    '../../_base_/schedules/coco_1x.py',
    '../../_base_/detection_runtime.py',
]

model = dict(
    backbone=dict(name='vssd_tiny', drop_path_rate=0.2, pretrained=True),
    neck=dict(in_channels=[64, 128, 256, 512]))
