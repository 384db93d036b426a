# The embedded set at 224 pixels, for models of full size: a check of the whole training path, without any download.
_base_ = './shapes.py'

train_dataloader = dict(
    batch_size=128, num_workers=8, dataset=dict(image_size=224, transform=dict(input_size=224)))
val_dataloader = dict(num_workers=8, dataset=dict(image_size=224, transform=dict(input_size=224)))
test_dataloader = val_dataloader
