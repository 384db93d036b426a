# Command: torchrun --nnodes 2 --nproc-per-node 8 tools/train.py configs/classification/efficientvmamba/efficientvmamba_base_in1k.py --launcher pytorch
# Cost: 16 GPUs x 64 images, 300 epochs; hours are not published and have not been measured here.
# Score: 81.8 % top-1 (published, github.com/TerryPei/EfficientVMamba).
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/datasets/imagenet_efficientvmamba.py',
    '../../_base_/schedules/efficientvmamba_300e.py',
]

model = dict(
    backbone=dict(name='efficientvmamba_base', drop_path_rate=0.1, num_classes=1000),
    type='ImageClassifier')
train_dataloader = dict(batch_size=64)
auto_scale_lr = dict(base_batch_size=1024)
