# ADE20K (150 classes, arXiv 1608.05442) where mmsegmentation has it: data/ade/ADEChallengeData2016/images and
# annotations, with training and validation in each. Crops of 512 x 512 from images resized by 0.5 to 2. 8 processes of
# 2 images.
_base_ = 'mmseg::_base_/datasets/ade20k.py'

train_dataloader = dict(batch_size=2, persistent_workers=False)
