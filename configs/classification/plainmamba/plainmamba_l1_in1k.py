# Command: torchrun --nproc-per-node 8 tools/train.py configs/classification/plainmamba/plainmamba_l1_in1k.py --launcher pytorch
# Cost: 8 GPUs x 256 images, 300 epochs; hours are not published and have not been measured here.
# Score: 77.9 % top-1, 94.0 % top-5 (published, github.com/ChenhongyiYang/PlainMamba).
# Official: mixed precision, without averaged weights, 15 epochs of warm-up.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/datasets/imagenet_swin.py',
    '../../_base_/schedules/plainmamba_300e.py',
]

model = dict(
    backbone=dict(name='plainmamba_l1', drop_path_rate=0.2, num_classes=1000, normal_init=True),
    type='ImageClassifier')
train_dataloader = dict(batch_size=256)
default_hooks = dict(ema=None)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, begin=0, end=15, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.01, begin=15, end=300, convert_to_iter_based=True),
]
