# Command: torchrun --nproc-per-node 8 tools/train.py configs/classification/hrvmamba/hrvmamba_small_in1k.py --launcher pytorch
# Cost: 8 GPUs x 128 images, 300 epochs; hours are not published and have not been measured here.
# Score: 81.3 % top-1 (published, github.com/zhanghao5201/HRVMamba).
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/datasets/imagenet_swin.py',
    '../../_base_/schedules/swin_300e.py',
]

model = dict(
    backbone=dict(name='hrvmamba_small', drop_path_rate=0.2, num_classes=1000),
    type='ImageClassifier')
train_dataloader = dict(dataset=dict(transform=dict(input_size=256)))
val_dataloader = dict(dataset=dict(transform=dict(input_size=256)))
test_dataloader = dict(dataset=dict(transform=dict(input_size=256)))
