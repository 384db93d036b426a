# Command: torchrun --nproc-per-node 8 tools/train.py configs/detection/grootvl/mask_rcnn_grootvl_small_3x_coco.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 36 epochs; about 20 hours on A100 cards (an estimate from its FLOPs).
# Score: 50.1 box AP, 44.6 mask AP (published, github.com/EasonXiao-888/GrootVL).
# No code of the published detectors and segmentors was released. Here: VMamba's recipe, with the drop path of the
# classifier, and without norms on the maps, which are normed already.
# The ImageNet weights lie in a folder that only a browser can open (see the model card): put them into the file named
# below.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/mask_rcnn.py',
    '../../_base_/datasets/coco_multiscale.py',
    '../../_base_/schedules/coco_3x.py',
    '../../_base_/detection_runtime.py',
]

model = dict(
    backbone=dict(
        name='grootvl_small',
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/grootvl_small.pth'),
        output_norm=False),
    neck=dict(in_channels=[96, 192, 384, 768]))
