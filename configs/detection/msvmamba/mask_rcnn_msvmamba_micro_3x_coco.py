# Command: torchrun --nproc-per-node 8 tools/train.py configs/detection/msvmamba/mask_rcnn_msvmamba_micro_3x_coco.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 36 epochs; about 12 hours on A100 cards (an estimate from its FLOPs).
# Score: 46.3 box AP, 41.8 mask AP (published, github.com/YuHengsss/MSVMamba).
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
        name='msvmamba_micro',
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/msvmamba_micro.pth')),
    neck=dict(in_channels=[64, 128, 256, 512]))
