# NWPU-RESISC45 as RSMamba is trained on it (arXiv 2403.19654): crops of 0.4 to 1 of the image, both flips, AutoAugment,
# no erasing; normalised by the mean and deviation of the data. Source: configs of KyanChen/RSMamba. Images lie in
# data/resisc45/{train,val}/<class>/, in the split of its datainfo/NWPU.
_base_ = './imagenet_swin.py'

_normalise = dict(mean=(0.368028, 0.381182, 0.343786), std=(0.145499, 0.135751, 0.132164))
train_dataloader = dict(
    dataset=dict(
        root='data/resisc45',
        num_classes=45,
        transform=dict(scale=(0.4, 1.0), vflip=0.5, auto_augment='original', re_prob=0.0, **_normalise)))
val_dataloader = dict(dataset=dict(root='data/resisc45', num_classes=45, transform=dict(**_normalise)))
test_dataloader = val_dataloader
data_preprocessor = dict(mixup=dict(num_classes=45))
