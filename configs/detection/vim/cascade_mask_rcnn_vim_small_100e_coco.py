# Command: torchrun --nproc-per-node 8 tools/train.py configs/detection/vim/cascade_mask_rcnn_vim_small_100e_coco.py --launcher pytorch
# Cost: 8 GPUs x 8 images, 184375 steps (about 100 epochs); about 200 hours on A100 cards (an estimate from its FLOPs).
# Score: none is known here.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/cascade_mask_rcnn_vim.py',
    '../../_base_/datasets/coco_lsj.py',
    '../../_base_/schedules/vim_coco_100e.py',
    '../../_base_/detection_runtime_by_steps.py',
]

model = dict(
    backbone=dict(name='vim_small', drop_path_rate=0.1, pretrained=True),
    neck=dict(in_channels=384))
