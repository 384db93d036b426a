# A folder of one's own: images, and a mask for each of the same name. Masks are PNG of one channel (mode 1, L or P) whose
# values are the numbers of the classes, or those of `pixel_values`; 255 is not counted unless it is one of them.
#
#     data/masks/images/{train,val}/NAME.jpg
#     data/masks/masks/{train,val}/NAME.png
#
# For the names of ISIC 2018, seg_map_suffix='_segmentation.png'.
_set = dict(
    type='BaseSegDataset',
    data_root='data/masks',
    img_suffix='.jpg',
    seg_map_suffix='.png',
    metainfo=dict(classes=('background', 'lesion'), pixel_values=(0, 255)))
train_dataloader = dict(
    batch_size=32,
    num_workers=4,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        data_prefix=dict(img_path='images/train', seg_map_path='masks/train'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='Resize', scale=(256, 256)),
            dict(type='RandomFlip', prob=0.5),
            dict(type='RandomFlip', prob=0.5, direction='vertical'),
            dict(type='RandomRotate', prob=0.5, degree=180.0, pad_val=0, seg_pad_val=255),
            dict(type='PackSegInputs'),
        ],
        **_set))
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        data_prefix=dict(img_path='images/val', seg_map_path='masks/val'),
        test_mode=True,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(256, 256)),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
        **_set))
test_dataloader = val_dataloader

val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU', 'mDice'])
test_evaluator = val_evaluator
