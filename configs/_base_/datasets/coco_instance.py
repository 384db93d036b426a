# COCO 2017 (arXiv 1405.0312) with boxes and masks, where mmdetection has it: data/coco/{train2017,val2017}/*.jpg and
# data/coco/annotations/instances_{train,val}2017.json. Images to 800 pixels, 1333 at most. 8 processes of 2 images.
_base_ = 'mmdet::_base_/datasets/coco_instance.py'

train_dataloader = dict(num_workers=4, persistent_workers=False)
