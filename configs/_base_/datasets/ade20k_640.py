# ADE20K as in ade20k.py, with images and crops of 640 pixels. 16 processes of 1 image.
_base_ = 'mmseg::_base_/datasets/ade20k_640x640.py'

train_dataloader = dict(batch_size=1, persistent_workers=False)
