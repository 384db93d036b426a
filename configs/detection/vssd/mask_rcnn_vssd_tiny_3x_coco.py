# Command: torchrun --nproc-per-node 8 tools/train.py configs/detection/vssd/mask_rcnn_vssd_tiny_3x_coco.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 36 epochs; about 16 hours on A100 cards (an estimate from its FLOPs).
# Score: 48.8 box AP, 43.6 mask AP (published, github.com/YuHengsss/VSSD).
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/mask_rcnn.py',
    '../../_base_/datasets/coco_multiscale.py',
    '../../_base_/schedules/coco_3x.py',
    '../../_base_/detection_runtime.py',
]

model = dict(
    backbone=dict(name='vssd_tiny', drop_path_rate=0.2, pretrained=True),
    neck=dict(in_channels=[64, 128, 256, 512]))
