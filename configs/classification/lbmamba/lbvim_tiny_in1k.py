# Command: torchrun --nproc-per-node 8 tools/train.py configs/classification/lbmamba/lbvim_tiny_in1k.py --launcher pytorch
# Cost: 8 GPUs x 128 images, 300 epochs; hours are not published and have not been measured here.
# Score: none is known here.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/datasets/imagenet_deit.py',
    '../../_base_/schedules/deit_300e.py',
]

model = dict(
    backbone=dict(name='lbvim_tiny', drop_path_rate=0.05, num_classes=1000),
    type='ImageClassifier')
optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
