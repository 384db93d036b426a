# CNFOOD-241 in the split of Res-VMamba (arXiv 2402.15761), with Swin's recipe. Source: data/build.py, utils/config.py and
# CNFOOD241_data_split of ChiShengChen/ResVMamba. 1 process of 128 images. The pictures of
# https://data.mendeley.com/datasets/fspyss5zbb/1 are to be sorted by the lists train.txt and val.txt of that folder into
# data/cnfood241/{train,val}/<class>/, with the 241 classes 000 to 240.
_base_ = './imagenet_swin.py'

train_dataloader = dict(dataset=dict(root='data/cnfood241', num_classes=241))
val_dataloader = dict(dataset=dict(root='data/cnfood241', num_classes=241))
test_dataloader = val_dataloader
data_preprocessor = dict(mixup=dict(num_classes=241))
