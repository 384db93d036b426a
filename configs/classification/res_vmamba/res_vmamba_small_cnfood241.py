# Command: python tools/train.py configs/classification/res_vmamba/res_vmamba_small_cnfood241.py
# Cost: 1 GPU x 128 images, 300 epochs; hours are not published and have not been measured here.
# Score: 79.54 % top-1 (published, github.com/ChiShengChen/ResVMamba).
# From random weights. Official: residuals by projections drawn anew in every step. Here: trained ones.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/datasets/cnfood241.py',
    '../../_base_/schedules/swin_300e.py',
]

model = dict(
    backbone=dict(name='res_vmamba_small', drop_path_rate=0.3, num_classes=241),
    type='ImageClassifier')
optim_wrapper = dict(optimizer=dict(lr=0.000125))
auto_scale_lr = dict(base_batch_size=128)
