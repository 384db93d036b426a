# Command: python tools/train.py configs/classification/res_vmamba/res_vmamba_tiny_cnfood241.py
# Cost: 1 GPU x 128 images, 300 epochs; hours are not published and have not been measured here.
# Score: none is known here.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/datasets/cnfood241.py',
    '../../_base_/schedules/swin_300e.py',
]

model = dict(
    backbone=dict(name='res_vmamba_tiny', drop_path_rate=0.2, num_classes=241),
    type='ImageClassifier')
optim_wrapper = dict(optimizer=dict(lr=0.000125))
auto_scale_lr = dict(base_batch_size=128)
