# Command: torchrun --nproc-per-node 8 tools/train.py configs/classification/rsmamba/rsmamba_small_resisc45.py --launcher pytorch
# Cost: 8 GPUs x 128 images, 500 epochs; hours are not published and have not been measured here.
# Score: none is known here.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/datasets/resisc45.py',
    '../../_base_/schedules/rsmamba_500e.py',
]

model = dict(
    backbone=dict(name='rsmamba_small', drop_path_rate=0.0, num_classes=45),
    type='ImageClassifier')
