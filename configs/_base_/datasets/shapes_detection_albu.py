# The embedded set with boxes and masks, augmented by albumentations through mmdet's own Albu: mirrored, lighter or
# darker. A box that leaves the image takes its label and its mask along.
_base_ = './shapes_detection.py'

train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(
                type='Albu',
                transforms=[
                    dict(type='HorizontalFlip', p=0.5),
                    dict(type='RandomBrightnessContrast', brightness_limit=0.2, contrast_limit=0.2, p=0.5),
                ],
                bbox_params=dict(
                    type='BboxParams',
                    format='pascal_voc',
                    label_fields=['gt_bboxes_labels', 'gt_ignore_flags'],
                    min_visibility=0.1,
                    filter_lost_elements=True),
                keymap=dict(img='image', gt_masks='masks', gt_bboxes='bboxes'),
                skip_img_without_anno=True),
            dict(type='PackDetInputs'),
        ]))
