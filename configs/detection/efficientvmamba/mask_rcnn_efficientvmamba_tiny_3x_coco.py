# Command: torchrun --nproc-per-node 8 tools/train.py configs/detection/efficientvmamba/mask_rcnn_efficientvmamba_tiny_3x_coco.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 36 epochs; about 4 hours on A100 cards (an estimate from its FLOPs).
# Score: 38.3 box AP, 35.3 mask AP (published, arXiv 2403.09977).
# Official: float16. Here: bfloat16.
# The paper names another learning rate and drop path than the official configs, which are followed here.
# Official: another depth than the released classifier has. Here: the released one. The paper does not state the
# narrower heads; these widths give its parameters and FLOPs.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/mask_rcnn.py',
    '../../_base_/datasets/coco_multiscale.py',
    '../../_base_/schedules/coco_3x.py',
    '../../_base_/detection_runtime.py',
]

model = dict(
    backbone=dict(name='efficientvmamba_tiny', drop_path_rate=0.1, pretrained=True),
    neck=dict(in_channels=[48, 96, 192, 384], out_channels=128),
    rpn_head=dict(in_channels=128, feat_channels=128),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=128),
        bbox_head=dict(in_channels=128, fc_out_channels=512),
        mask_roi_extractor=dict(out_channels=128),
        mask_head=dict(in_channels=128, conv_out_channels=128)))
optim_wrapper = dict(type='Bfloat16OptimWrapper')
