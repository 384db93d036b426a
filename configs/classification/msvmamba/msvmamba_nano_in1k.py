# Command: torchrun --nproc-per-node 8 tools/train.py configs/classification/msvmamba/msvmamba_nano_in1k.py --launcher pytorch
# Cost: 8 GPUs x 128 images, 300 epochs; hours are not published and have not been measured here.
# Score: 77.3 % top-1 (published, github.com/YuHengsss/MSVMamba).
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/datasets/imagenet_swin.py',
    '../../_base_/schedules/swin_300e.py',
]

model = dict(
    backbone=dict(name='msvmamba_nano', drop_path_rate=0.2, num_classes=1000),
    type='ImageClassifier')
