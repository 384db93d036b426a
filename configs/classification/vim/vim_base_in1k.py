# Command: torchrun --nproc-per-node 8 tools/train.py configs/classification/vim/vim_base_in1k.py --launcher pytorch
# Cost: 8 GPUs x 128 images, 300 epochs; hours are not published and have not been measured here.
# Score: 81.9 % top-1, 95.8 % top-5 (published, github.com/hustvl/Vim).
# The recipe of the base model is NOT published. This is the small model's, with the drop path of DeiT-B (0.1) as a
# first guess: do not take its result for a reproduction.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/datasets/imagenet_deit.py',
    '../../_base_/schedules/deit_300e.py',
]

model = dict(
    backbone=dict(name='vim_base', drop_path_rate=0.1, num_classes=1000),
    type='ImageClassifier')
optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
