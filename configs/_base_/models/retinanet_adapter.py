# RetinaNet on a plain model with an adapter beside it (ViT-Adapter, arXiv 2205.08534), whose first map it does not read,
# with batch norm in the neck. Source: downstream/mmdetection/plain_mamba_det_configs of ChenhongyiYang/PlainMamba.
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'

model = dict(
    backbone=dict(_delete_=True, type='AdapterBackbone'),
    neck=dict(add_extra_convs='on_output', norm_cfg=dict(type='SyncBN', requires_grad=True)))
find_unused_parameters = True
