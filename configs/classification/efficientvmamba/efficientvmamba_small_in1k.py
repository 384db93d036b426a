# Command: torchrun --nnodes 2 --nproc-per-node 8 tools/train.py configs/classification/efficientvmamba/efficientvmamba_small_in1k.py --launcher pytorch
# Cost: 16 GPUs x 128 images, 300 epochs; hours are not published and have not been measured here.
# Score: 78.7 % top-1 (published, github.com/TerryPei/EfficientVMamba).
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/datasets/imagenet_efficientvmamba.py',
    '../../_base_/schedules/efficientvmamba_300e.py',
]

model = dict(
    backbone=dict(name='efficientvmamba_small', drop_path_rate=0.1, num_classes=1000),
    type='ImageClassifier')
