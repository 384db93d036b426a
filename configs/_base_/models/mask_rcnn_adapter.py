# Mask R-CNN on a plain model with an adapter beside it (ViT-Adapter, arXiv 2205.08534), with batch norm in the neck and
# in a convolutional box head. Source: downstream/mmdetection/plain_mamba_det_configs of ChenhongyiYang/PlainMamba.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

_norm = dict(type='SyncBN', requires_grad=True)
model = dict(
    backbone=dict(_delete_=True, type='AdapterBackbone'),
    neck=dict(norm_cfg=_norm),
    roi_head=dict(bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=_norm)))
