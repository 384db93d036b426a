# Command: torchrun --nproc-per-node 8 tools/train.py configs/classification/groupmamba/groupmamba_tiny_in1k.py --launcher pytorch
# Cost: 8 GPUs x 128 images, 300 epochs; hours are not published and have not been measured here.
# Score: 83.3 % top-1 (published, github.com/Amshaker/GroupMamba).
# Half of the loss is that of the second head on the classes that the teacher, which is fetched when the training
# begins, sees in the same mixed images; for a file instead, --cfg-options model.teacher.checkpoint=FILE
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/datasets/imagenet_swin.py',
    '../../_base_/schedules/swin_300e.py',
]

model = dict(
    backbone=dict(name='groupmamba_tiny', drop_path_rate=0.05, num_classes=1000),
    type='ImageClassifier',
    teacher=dict(name='regnety_160.deit_in1k'))
