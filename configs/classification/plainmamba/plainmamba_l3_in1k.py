# Command: torchrun --nproc-per-node 8 tools/train.py configs/classification/plainmamba/plainmamba_l3_in1k.py --launcher pytorch
# Cost: 8 GPUs x 128 images, 300 epochs; hours are not published and have not been measured here.
# Score: 82.3 % top-1, 95.9 % top-5 (published, github.com/ChenhongyiYang/PlainMamba).
# Official: in float32, gradients clipped at 1, 20 epochs of warm-up.
# Official: another factor of the averaged weights after epoch 250. Here: one throughout.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/datasets/imagenet_swin.py',
    '../../_base_/schedules/plainmamba_300e.py',
]

model = dict(
    backbone=dict(name='plainmamba_l3', drop_path_rate=0.4, num_classes=1000, normal_init=True),
    type='ImageClassifier')
train_dataloader = dict(batch_size=128)
auto_scale_lr = dict(base_batch_size=1024)
optim_wrapper = dict(type='OptimWrapper', clip_grad=dict(max_norm=1.0), optimizer=dict(lr=0.001))
