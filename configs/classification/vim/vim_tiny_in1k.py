# Command: torchrun --nproc-per-node 8 tools/train.py configs/classification/vim/vim_tiny_in1k.py --launcher pytorch
# Cost: 8 GPUs x 128 images, 300 epochs; hours are not published and have not been measured here.
# Score: 76.1 % top-1, 93.0 % top-5 (published, github.com/hustvl/Vim).
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/datasets/imagenet_deit.py',
    '../../_base_/schedules/deit_300e.py',
]

model = dict(
    backbone=dict(name='vim_tiny', drop_path_rate=0.0, num_classes=1000),
    type='ImageClassifier')
