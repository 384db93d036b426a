# Command: torchrun --nproc-per-node 8 tools/train.py configs/classification/localmamba/local_vim_small_searched_in1k.py --launcher pytorch
# Cost: 8 GPUs x 128 images, 300 epochs; hours are not published and have not been measured here.
# Score: 81.1 % top-1 (published, github.com/hunto/LocalMamba).
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/datasets/imagenet_efficientvmamba.py',
    '../../_base_/schedules/localmamba_300e.py',
]

model = dict(
    backbone=dict(name='local_vim_small_searched', drop_path_rate=0.1, num_classes=1000),
    type='ImageClassifier')
optim_wrapper = dict(type='OptimWrapper')
