# Command: torchrun --nproc-per-node 8 tools/train.py configs/detection/vmamba/mask_rcnn_vanilla_vmamba_base_1x_coco.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 12 epochs; about 16 hours on A100 cards (an estimate from its FLOPs).
# Score: 48.6 box AP, 43.3 mask AP (published, github.com/MzeroMiko/VMamba).
# Official: drop path at the default of the code, 0.1, and not that of the classifier.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/mask_rcnn.py',
    '../../_base_/datasets/coco_instance.py',
    '../../_base_/schedules/coco_1x.py',
    '../../_base_/detection_runtime.py',
]

model = dict(
    backbone=dict(name='vanilla_vmamba_base', drop_path_rate=0.1, pretrained=True),
    neck=dict(in_channels=[128, 256, 512, 1024]))
