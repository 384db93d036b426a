# Command: python tools/train.py configs/detection/vmamba/mask_rcnn_vmamba_demo_shapes.py
# Cost: 2 CPU cores, 6 minutes.
# Score: 0.72 box AP and 0.71 mask AP at IoU 0.5 on held-out images.
# A small Mask R-CNN from scratch on scenes of 96 pixels, with anchors from 16 pixels on.
_base_ = [
    '../../_base_/models/mask_rcnn.py',
    '../../_base_/datasets/shapes_detection_albu.py',
    '../../_base_/schedules/shapes_detection.py',
    '../../_base_/detection_runtime.py',
]

model = dict(
    backbone=dict(name='vmamba_tiny', dims=(32, 64, 128, 256), depths=(1, 1, 2, 1)),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64, num_outs=4),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4], strides=[4, 8, 16, 32])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=10),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(in_channels=64, conv_out_channels=64, num_convs=2, num_classes=10)),
    train_cfg=dict(rpn_proposal=dict(nms_pre=250, max_per_img=100), rcnn=dict(sampler=dict(num=32))),
    test_cfg=dict(rpn=dict(nms_pre=250, max_per_img=50), rcnn=dict(max_per_img=20)))
