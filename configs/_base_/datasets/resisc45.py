# NWPU-RESISC45 as RSMamba is trained on it (arXiv 2403.19654): DeiT's augmentation without repeated images. Images lie in
# data/resisc45/{train,val}/<class>/, in a split of one's own choice.
_base_ = './imagenet_swin.py'

train_dataloader = dict(dataset=dict(root='data/resisc45', num_classes=45))
val_dataloader = dict(dataset=dict(root='data/resisc45', num_classes=45))
test_dataloader = val_dataloader
data_preprocessor = dict(mixup=dict(num_classes=45))
