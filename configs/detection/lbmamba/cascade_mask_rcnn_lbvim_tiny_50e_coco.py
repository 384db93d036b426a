# Command: torchrun --nproc-per-node 8 tools/train.py configs/detection/lbmamba/cascade_mask_rcnn_lbvim_tiny_50e_coco.py --launcher pytorch
# Cost: 8 GPUs x 4 images, 184375 steps (about 50 epochs); about 92 hours on A100 cards (an estimate from its FLOPs).
# Score: none is known here.
# Norms without mean, as officially. Official: half of the 64 images that would make 100 epochs of the steps.
# No ImageNet weights are published: train the classifier first, and put its weights into the file named below.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/cascade_mask_rcnn_lbvim.py',
    '../../_base_/datasets/coco_lsj.py',
    '../../_base_/schedules/vitdet_coco.py',
    '../../_base_/detection_runtime_by_steps.py',
]

model = dict(
    backbone=dict(
        name='lbvim_tiny',
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/lbvim_tiny.pth')),
    neck=dict(in_channels=192))
train_dataloader = dict(batch_size=4)
auto_scale_lr = dict(base_batch_size=32)
