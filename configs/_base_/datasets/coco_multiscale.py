# COCO with images of 480 to 800 pixels, every second one cropped before: the data of 3x schedules since DETR (arXiv
# 2005.12872) and Swin.
_base_ = './coco_instance.py'

_resize = dict(
    type='RandomChoiceResize', scales=[(short, 1333) for short in range(480, 801, 32)], keep_ratio=True)
_smaller = dict(type='RandomChoiceResize', scales=[(short, 1333) for short in (400, 500, 600)], keep_ratio=True)
_crop = dict(type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True)
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='RandomFlip', prob=0.5),
            dict(type='RandomChoice', transforms=[[_resize], [_smaller, _crop, _resize]]),
            dict(type='PackDetInputs'),
        ]))
