# Command: torchrun --nproc-per-node 8 tools/train.py configs/segmentation/localmamba/upernet_local_vmamba_small_160k_ade20k.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 160000 steps; about 15 hours on A100 cards (an estimate from its FLOPs).
# Score: 50.0 mIoU (published, arXiv 2403.09338).
# Official: float16. Here: bfloat16.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/upernet.py',
    '../../_base_/datasets/ade20k.py',
    '../../_base_/schedules/ade20k_160k.py',
    '../../_base_/segmentation_runtime.py',
]

model = dict(
    backbone=dict(name='local_vmamba_small', drop_path_rate=0.2, pretrained=True),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384))
optim_wrapper = dict(type='Bfloat16OptimWrapper')
