# A U-shaped segmentor with cross-entropy and Dice losses, as in VM-UNet and MHS-VM, on the maps at strides 4 to 32, of
# which the last is a skip and the beginning of the decoder. A config names the backbone, and in the head the channels of
# its maps, the last ones twice. dict(name=...) as the head's `blocks` builds the decoder from another model's blocks.
# The Dice loss leaves out class 0, the background: most pixels are of it, and mmseg joins all classes in one Dice.
# Images are normalised with ImageNet's mean and deviation, and padded to multiples of 32.
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size_divisor=32,
        test_cfg=dict(size_divisor=32)),
    backbone=dict(type='VSSMBackbone', out_indices=(0, 1, 2, 3), output_norm=True),
    decode_head=dict(
        type='UShapedHead',
        in_index=(0, 1, 2, 3, 3),
        stride=4,
        depths=(1, 1, 1, 1, 1),
        loss_decode=[
            dict(type='CrossEntropyLoss', loss_name='loss_ce', avg_non_ignore=True),
            dict(type='DiceLoss', loss_name='loss_dice', ignore_index=0),
        ]),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
