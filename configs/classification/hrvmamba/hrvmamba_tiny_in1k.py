# Command: torchrun --nproc-per-node 8 tools/train.py configs/classification/hrvmamba/hrvmamba_tiny_in1k.py --launcher pytorch
# Cost: 8 GPUs x 256 images, 300 epochs; hours are not published and have not been measured here.
# Score: 78.6 % top-1 (published, github.com/zhanghao5201/HRVMamba).
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/datasets/imagenet_swin.py',
    '../../_base_/schedules/swin_300e.py',
]

model = dict(
    backbone=dict(name='hrvmamba_tiny', drop_path_rate=0.1, num_classes=1000),
    type='ImageClassifier')
train_dataloader = dict(batch_size=256, dataset=dict(transform=dict(input_size=256)))
auto_scale_lr = dict(base_batch_size=2048)
optim_wrapper = dict(optimizer=dict(lr=0.002))
val_dataloader = dict(dataset=dict(transform=dict(input_size=256)))
test_dataloader = dict(dataset=dict(transform=dict(input_size=256)))
