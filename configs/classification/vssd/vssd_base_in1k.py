# Command: torchrun --nproc-per-node 8 tools/train.py configs/classification/vssd/vssd_base_in1k.py --launcher pytorch
# Cost: 8 GPUs x 128 images, 300 epochs; hours are not published and have not been measured here.
# Score: 84.7 % top-1 (published, github.com/YuHengsss/VSSD).
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/datasets/imagenet_swin.py',
    '../../_base_/schedules/swin_300e.py',
]

model = dict(
    backbone=dict(name='vssd_base', drop_path_rate=0.6, num_classes=1000),
    type='ImageClassifier')
optim_wrapper = dict(optimizer=dict(lr=0.0006))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.0016667, begin=0, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.01, begin=20, end=300, convert_to_iter_based=True),
]
