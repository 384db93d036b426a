# ImageNet-1k with Swin's recipe (arXiv 2103.14030), which VMamba was trained with: DeiT's without repeated
# augmentation. Source: classification/config.py and data/build.py of MzeroMiko/VMamba. 8 processes of 128 images.
_base_ = './imagenet_deit.py'

train_dataloader = dict(
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
    # Without effect, as officially: timm leaves the colour jitter out because RandAugment is on.
    dataset=dict(transform=dict(color_jitter=0.4)))
val_dataloader = dict(batch_size=128)
test_dataloader = val_dataloader
