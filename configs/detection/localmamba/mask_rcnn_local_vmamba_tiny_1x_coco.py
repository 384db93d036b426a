# Command: torchrun --nproc-per-node 8 tools/train.py configs/detection/localmamba/mask_rcnn_local_vmamba_tiny_1x_coco.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 12 epochs; about 8 hours on A100 cards (an estimate from its FLOPs).
# Score: 46.7 box AP, 42.2 mask AP (published, arXiv 2403.09338).
# Official: drop path at the default of the code, 0.1, and not that of the classifier.
# Official: float16. Here: bfloat16.
# No ImageNet weights are published: train the classifier first, and put its weights into the file named below.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/mask_rcnn.py',
    '../../_base_/datasets/coco_instance.py',
    '../../_base_/schedules/coco_1x.py',
    '../../_base_/detection_runtime.py',
]

model = dict(
    backbone=dict(
        name='local_vmamba_tiny',
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/local_vmamba_tiny.pth')),
    neck=dict(in_channels=[96, 192, 384, 768]))
optim_wrapper = dict(type='Bfloat16OptimWrapper')
