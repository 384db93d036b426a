# Command: torchrun --nproc-per-node 8 tools/train.py configs/detection/mamba2d/mask_rcnn_mamba2d_tiny_1x_coco.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 12 epochs; about 10 hours on A100 cards (an estimate from its FLOPs).
# Score: 48.5 box AP, 43.8 mask AP (published, github.com/cocoalex00/Mamba2D).
# The maps end in the model's own norms, so that the backbone adds none.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/mask_rcnn.py',
    '../../_base_/datasets/coco_instance.py',
    '../../_base_/schedules/coco_1x.py',
    '../../_base_/detection_runtime.py',
]

model = dict(
    backbone=dict(name='mamba2d_tiny', drop_path_rate=0.175, pretrained=True, output_norm=False),
    neck=dict(in_channels=[64, 128, 320, 512], norm_cfg=dict(type='GN', num_groups=32)))
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
