# The embedded scenes at 512 pixels, for detectors of full size: a check of the whole path, without any download.
_base_ = './shapes_detection.py'

train_dataloader = dict(batch_size=16, num_workers=8, dataset=dict(image_size=512))
val_dataloader = dict(num_workers=8, dataset=dict(image_size=512))
test_dataloader = val_dataloader
