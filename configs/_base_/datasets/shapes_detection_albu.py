# The embedded set with boxes and masks, augmented by albumentations through mmdet's own Albu: turned by quarters and
# mirrored, lighter or darker. Boxes that leave the image take their labels and masks along.
_base_ = './shapes_detection.py'

train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(
                type='Albu',
                transforms=[
                    dict(type='SquareSymmetry', p=1.0),
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
