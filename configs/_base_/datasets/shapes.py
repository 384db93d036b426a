# The embedded set (vssm.data.shapes): ten kinds of shapes, drawn on first use into data/, about half a minute.
# Turning and mirroring a shape leaves it of its kind; strong crops do not, as they can cut the large shape away.
train_dataloader = dict(
    batch_size=64,
    num_workers=2,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='ShapesDataset',
        root='data',
        split='train',
        train=8000,
        val=1000,
        image_size=64,
        seed=0,
        transform=dict(
            type='TimmTransform',
            input_size=64,
            is_training=True,
            scale=(0.8, 1.0),
            hflip=0.5,
            vflip=0.5,
            color_jitter=None,
            interpolation='bicubic')))
val_dataloader = dict(
    batch_size=100,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ShapesDataset',
        root='data',
        split='val',
        train=8000,
        val=1000,
        image_size=64,
        seed=0,
        transform=dict(type='TimmTransform', input_size=64, interpolation='bicubic', crop_pct=1.0)))
test_dataloader = val_dataloader

data_preprocessor = dict(type='ClassificationPreprocessor')
