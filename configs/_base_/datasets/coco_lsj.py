# COCO with large-scale jitter (arXiv 2012.07177): resized by 0.1 to 2, then cropped to 1024 x 1024; the preprocessor
# pads smaller images. Evaluated at 1024 pixels, padded as well. Source: det/projects/ViTDet/configs/common of hustvl/Vim.
# 8 processes of 8 images.
_base_ = './coco_instance.py'

_size = (1024, 1024)
_evaluation = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=_size, keep_ratio=True),
    # With the mean colour, which is zero for the model (blue, green, red).
    dict(type='Pad', size=_size, pad_val=dict(img=(104, 116, 124))),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=8,
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='RandomFlip', prob=0.5),
            dict(type='RandomResize', scale=_size, ratio_range=(0.1, 2.0), keep_ratio=True),
            dict(
                type='RandomCrop',
                crop_type='absolute_range',
                crop_size=_size,
                recompute_bbox=True,
                allow_negative_crop=True),
            dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-2, 1e-2)),
            dict(type='PackDetInputs'),
        ]))
val_dataloader = dict(dataset=dict(pipeline=_evaluation))
test_dataloader = val_dataloader
