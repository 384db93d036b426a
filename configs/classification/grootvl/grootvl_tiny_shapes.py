# Command: python tools/train.py configs/classification/grootvl/grootvl_tiny_shapes.py
# Cost: 1 GPU x 128 images, 30 epochs; some minutes: 12 epochs of a tiny model took about 3 on an H200.
# Score: not measured yet; the images are held out from training.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/datasets/shapes_224.py',
    '../../_base_/schedules/shapes.py',
]

model = dict(
    backbone=dict(name='grootvl_tiny', num_classes=10, drop_path_rate=0.1),
    type='ImageClassifier',
    label_smoothing=0.1)
