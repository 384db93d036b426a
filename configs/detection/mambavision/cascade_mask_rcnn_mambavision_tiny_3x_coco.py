# Command: torchrun --nproc-per-node 8 tools/train.py configs/detection/mambavision/cascade_mask_rcnn_mambavision_tiny_3x_coco.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 36 epochs; about 74 hours on A100 cards (an estimate from its FLOPs).
# Score: 51.1 box AP, 44.3 mask AP (published, github.com/NVlabs/MambaVision).
# Official: drop path 0.2 whatever the configs say; windows for whole images of 112 and 56 positions; mixed precision.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/cascade_mask_rcnn_4conv.py',
    '../../_base_/datasets/coco_multiscale.py',
    '../../_base_/schedules/coco_3x.py',
    '../../_base_/detection_runtime.py',
]

model = dict(
    backbone=dict(name='mambavision_tiny', drop_path_rate=0.2, pretrained=True, windows=[112, 56]),
    neck=dict(in_channels=[80, 160, 320, 640]))
optim_wrapper = dict(type='Bfloat16OptimWrapper')
