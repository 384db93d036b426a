# Command: torchrun --nnodes 4 --nproc-per-node 8 tools/train.py configs/classification/mambavision/mambavision_tiny_in1k.py --launcher pytorch
# Cost: 32 GPUs x 128 images, 310 epochs; hours are not published and have not been measured here.
# Score: 82.3 % top-1, 96.2 % top-5 (published, github.com/NVlabs/MambaVision).
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/datasets/imagenet_swin.py',
    '../../_base_/schedules/mambavision_310e.py',
]

model = dict(
    backbone=dict(name='mambavision_tiny', drop_path_rate=0.2, num_classes=1000),
    type='ImageClassifier')
val_dataloader = dict(dataset=dict(transform=dict(crop_pct=1.0)))
test_dataloader = dict(dataset=dict(transform=dict(crop_pct=1.0)))
