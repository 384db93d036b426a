# What every training of a study shares: 8 epochs on 4000 images of the embedded set at 96 pixels, 2000 held out.
# So short and so few that models differ; no weights are kept, and the accuracy is that of the last epoch.
_base_ = ['../_base_/datasets/shapes.py', '../_base_/schedules/shapes.py']

_set = dict(train=4000, val=2000, image_size=96)
# Images come as bytes, and are normalised on the device: one data worker a training then suffices.
_transform = dict(input_size=96, use_prefetcher=True)
model = dict(
    type='ImageClassifier',
    backbone=dict(num_classes=10, drop_path_rate=0.1),
    label_smoothing=0.1)
data_preprocessor = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
train_dataloader = dict(num_workers=1, dataset=dict(transform=_transform, **_set))
val_dataloader = dict(num_workers=1, dataset=dict(transform=_transform, **_set))
test_dataloader = val_dataloader

train_cfg = dict(max_epochs=8, val_interval=1000)  # the last epoch is always evaluated
# The schedule ends with the training, whatever its length (2 epochs at least).
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.01, begin=1, convert_to_iter_based=True),
]
default_hooks = dict(ema=None, checkpoint=None, progress=None)
visualizer = dict(vis_backends=[dict(type='LocalVisBackend')])
