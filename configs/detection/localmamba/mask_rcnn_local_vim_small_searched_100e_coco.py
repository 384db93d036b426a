# Command: torchrun --nproc-per-node 8 tools/train.py configs/detection/localmamba/mask_rcnn_local_vim_small_searched_100e_coco.py --launcher pytorch
# Cost: 8 GPUs x 8 images, 184375 steps (about 100 epochs); about 120 hours on A100 cards (an estimate from its FLOPs).
# Score: none is known here.
# Norms with mean and bias, as officially, which start from those of the classifier. Official: the map is the output of
# the last mixer; 2 images a GPU (1 of the small model), on how many is not said. Here: the residual stream; the 64
# images that make 100 epochs of the steps.
# Official: the config names no ImageNet weights.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/mask_rcnn_vitdet.py',
    '../../_base_/datasets/coco_lsj.py',
    '../../_base_/schedules/vitdet_coco.py',
    '../../_base_/detection_runtime_by_steps.py',
]

model = dict(
    backbone=dict(
        name='local_vim_small_searched',
        drop_path_rate=0.1,
        pretrained=True,
        layer_norm=True),
    neck=dict(in_channels=384))
