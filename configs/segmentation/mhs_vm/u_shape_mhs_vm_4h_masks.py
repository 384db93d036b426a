# Command: python tools/train.py configs/segmentation/mhs_vm/u_shape_mhs_vm_4h_masks.py
# Cost: 1 GPU x 32 images, 17000 steps; hours are not published and have not been measured here.
# Score: 80.85 mIoU, 89.41 Dice on ISIC 2018 (published, github.com/PixDeep/MHS-VM); here for a folder of one's own.
# The network of MHS-VM: two classes here, any number with `classes` of the data and `num_classes` of the head.
# Official: binary cross-entropy and Dice on one output; here: on one for each class, because mmseg's Dice loss would take
# a single output for the background.
_base_ = [
    '../../_base_/models/u_shape.py',
    '../../_base_/datasets/masks.py',
    '../../_base_/schedules/u_shape_17k.py',
    '../../_base_/segmentation_runtime.py',
]

model = dict(
    backbone=dict(name='mhs_vm_4h', drop_path_rate=0.2, entries=True, output_norm=False),
    decode_head=dict(
        in_index=(1, 2, 3, 4),
        in_channels=[192, 384, 768, 768],
        stride=8,
        depths=(2, 2, 2, 1),
        blocks=dict(name='mhs_vm_4h'),
        drop_path_rate=0.2,
        num_classes=2))
