# Command: torchrun --nproc-per-node 8 tools/train.py configs/detection/efficientvmamba/mask_rcnn_efficientvmamba_tiny_1x_coco.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 12 epochs; about 6 hours on A100 cards (an estimate from its FLOPs).
# Score: 35.6 box AP, 33.2 mask AP (published, arXiv 2403.09977).
# Official: float16, and for tiny and small depths and widths that the released classifiers do not have. Here:
# bfloat16, and the released ones. The paper names other learning rates and drop paths than the official configs,
# which are followed here.
# The paper counts 11 M parameters, of a narrower detector that it does not describe.
_base_ = [
    '../../_base_/models/mask_rcnn.py',
    '../../_base_/datasets/coco_instance.py',
    '../../_base_/schedules/coco_1x.py',
    '../../_base_/detection_runtime.py',
]

model = dict(
    backbone=dict(name='efficientvmamba_tiny', drop_path_rate=0.1, pretrained=True),
    neck=dict(in_channels=[48, 96, 192, 384]))
optim_wrapper = dict(type='Bfloat16OptimWrapper')
