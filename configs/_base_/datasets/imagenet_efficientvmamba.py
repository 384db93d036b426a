# ImageNet-1k as EfficientVMamba was trained: Swin's data with RandAugment whose strength does not change its ranges
# (no inc1), and less mixup. Source: the official training logs. 16 processes of 128 images.
_base_ = './imagenet_swin.py'

train_dataloader = dict(dataset=dict(transform=dict(color_jitter=0.3, auto_augment='rand-m9-mstd0.5')))
data_preprocessor = dict(mixup=dict(mixup_alpha=0.2))
