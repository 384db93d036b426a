# Command: torchrun --nnodes 4 --nproc-per-node 8 tools/train.py configs/classification/mamba2d/mamba2d_nano_in1k.py --launcher pytorch
# Cost: 32 GPUs x 128 images, 300 epochs; hours are not published and have not been measured here.
# Score: 79.6 % top-1 (published, github.com/cocoalex00/Mamba2D).
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/datasets/imagenet_swin.py',
    '../../_base_/schedules/mamba2d_300e.py',
]

model = dict(
    backbone=dict(name='mamba2d_nano', drop_path_rate=0.0, num_classes=1000),
    type='ImageClassifier')
val_dataloader = dict(dataset=dict(transform=dict(crop_pct=1.0)))
test_dataloader = dict(dataset=dict(transform=dict(crop_pct=1.0)))
optim_wrapper = dict(optimizer=dict(weight_decay=0.025))
