# Command: torchrun --nproc-per-node 8 tools/train.py configs/detection/localmamba/mask_rcnn_local_vmamba_tiny_3x_coco.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 36 epochs; about 17 hours on A100 cards (an estimate from its FLOPs).
# Score: 48.7 box AP, 43.4 mask AP (published, arXiv 2403.09338).
# The ImageNet weights lie in a folder that only a browser can open (see the model card): put them into the file named
# below.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/mask_rcnn.py',
    '../../_base_/datasets/coco_multiscale.py',
    '../../_base_/schedules/coco_3x.py',
    '../../_base_/detection_runtime.py',
]

model = dict(
    backbone=dict(
        name='local_vmamba_tiny',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/local_vmamba_tiny.pth')),
    neck=dict(in_channels=[96, 192, 384, 768]))
