# Command: python tools/train.py configs/classification/efficientvmamba/efficientvmamba_tiny_shapes.py
# Cost: 1 GPU, some minutes (not measured yet).
# Score: not measured yet; the images are held out from training.
# The full-size model at 224 pixels on the embedded set: a check of the whole training path, without any download.
_base_ = ['../../_base_/datasets/shapes.py', '../../_base_/schedules/shapes.py']

model = dict(
    type='ImageClassifier',
    backbone=dict(model_name='efficientvmamba_tiny', num_classes=10, drop_path_rate=0.1),
    label_smoothing=0.1)
train_dataloader = dict(
    batch_size=128, num_workers=8, dataset=dict(image_size=224, transform=dict(input_size=224)))
val_dataloader = dict(num_workers=8, dataset=dict(image_size=224, transform=dict(input_size=224)))
test_dataloader = val_dataloader
