# Command: torchrun --nproc-per-node 8 tools/train.py configs/detection/groupmamba/mask_rcnn_groupmamba_tiny_1x_coco.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 12 epochs; about 8 hours on A100 cards (an estimate from its FLOPs).
# Score: 47.6 box AP, 42.9 mask AP (published, arXiv 2407.13772).
# No code of the published detector and segmentor was released. Here: VMamba's recipe, with the drop path of the
# classifier.
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
        name='groupmamba_tiny',
        drop_path_rate=0.05,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/groupmamba_tiny.pth')),
    neck=dict(in_channels=[64, 128, 348, 448]))
