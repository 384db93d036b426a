# Command: torchrun --nproc-per-node 8 tools/train.py configs/classification/vim/vim_small_in1k.py --launcher pytorch
# Cost: 8 GPUs x 64 images, 300 epochs; hours are not published and have not been measured here.
# Score: 80.5 % top-1, 95.1 % top-5 (published, github.com/hustvl/Vim).
# The official script keeps the rate of 1e-3 at the smaller batch, with half the weight decay and some drop path.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/datasets/imagenet_deit.py',
    '../../_base_/schedules/deit_300e.py',
]

model = dict(
    backbone=dict(name='vim_small', drop_path_rate=0.05, num_classes=1000),
    type='ImageClassifier')
train_dataloader = dict(batch_size=64)
auto_scale_lr = dict(base_batch_size=512)
optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
