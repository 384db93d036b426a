# The embedded set with class maps, augmented by albumentations through mmseg's own Albu: mirrored, lighter or darker.
_base_ = './shapes_segmentation.py'

train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(
                type='Albu',
                transforms=[
                    dict(type='HorizontalFlip', p=0.5),
                    dict(type='RandomBrightnessContrast', brightness_limit=0.2, contrast_limit=0.2, p=0.5),
                ]),
            dict(type='PackSegInputs'),
        ]))
