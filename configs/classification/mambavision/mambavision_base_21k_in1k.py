# Command: torchrun --nnodes 4 --nproc-per-node 8 tools/train.py configs/classification/mambavision/mambavision_base_21k_in1k.py --launcher pytorch
# Cost: 32 GPUs x 128 images, 310 epochs; hours are not published and have not been measured here.
# Score: 84.9 % top-1, 97.5 % top-5 (published, github.com/NVlabs/MambaVision).
# How the published weights were trained on ImageNet-21k first, and on ImageNet-1k afterwards, is NOT followed: this is
# the recipe of the model without them. Do not take its result for a reproduction.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/datasets/imagenet_swin.py',
    '../../_base_/schedules/mambavision_310e.py',
]

model = dict(
    backbone=dict(name='mambavision_base_21k', drop_path_rate=0.3, num_classes=1000),
    type='ImageClassifier')
optim_wrapper = dict(optimizer=dict(weight_decay=0.075))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.0002, begin=0, end=35, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.001, begin=35, end=300, convert_to_iter_based=True),
]
val_dataloader = dict(dataset=dict(transform=dict(crop_pct=1.0)))
test_dataloader = dict(dataset=dict(transform=dict(crop_pct=1.0)))
