# Command: torchrun --nproc-per-node 8 tools/train.py configs/classification/mhs_vm/mhs_vm_4h_in1k.py --launcher pytorch
# Cost: 8 GPUs x 128 images, 300 epochs; hours are not published and have not been measured here.
# Score: none is known here.
# Its authors train segmentors from scratch and no classifier: this is the recipe of VMamba.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/datasets/imagenet_swin.py',
    '../../_base_/schedules/swin_300e.py',
]

model = dict(
    backbone=dict(name='mhs_vm_4h', drop_path_rate=0.2, num_classes=1000),
    type='ImageClassifier')
