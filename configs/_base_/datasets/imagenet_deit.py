# ImageNet-1k with DeiT's recipe (arXiv 2012.12877), which Vim was trained with: RandAugment, random erasing, mixup,
# cutmix, repeated augmentation. Source: vim/main.py and vim/datasets.py of hustvl/Vim. 8 processes of 128 images.
# ImageNet lies in data/imagenet/{train,val}/<class>/ or data/imagenet/{train,val}.tar; from Hugging Face instead:
#   --cfg-options train_dataloader.dataset.reader=hfds/ILSVRC/imagenet-1k train_dataloader.dataset.root=None
# (and the same for val_dataloader, whose split there is called validation).
train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type='RepeatedAugmentationSampler', num_repeats=3),
    dataset=dict(
        type='ImageDataset',
        root='data/imagenet',
        split='train',
        num_classes=1000,
        skip_bad_images=True,
        # timm, and so the official training, leaves the colour jitter out because RandAugment is on.
        transform=dict(
            type='TimmTransform',
            input_size=224,
            is_training=True,
            color_jitter=0.3,
            auto_augment='rand-m9-mstd0.5-inc1',
            interpolation='bicubic',
            re_prob=0.25,
            re_mode='pixel',
            re_count=1)))
val_dataloader = dict(
    batch_size=192,
    num_workers=8,
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ImageDataset',
        root='data/imagenet',
        split='val',
        num_classes=1000,
        # Shorter side to 256, then the 224 pixels in the middle.
        transform=dict(type='TimmTransform', input_size=224, interpolation='bicubic', crop_pct=0.875)))
test_dataloader = val_dataloader

# The transforms normalise, as random erasing comes after it.
data_preprocessor = dict(
    type='ClassificationPreprocessor',
    mixup=dict(
        mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5, mode='batch', label_smoothing=0.1,
        num_classes=1000))
