# Command: torchrun --nproc-per-node 8 tools/train.py configs/segmentation/grootvl/upernet_grootvl_small_160k_ade20k.py --launcher pytorch
# Cost: 8 GPUs x 2 images, 160000 steps; about 14 hours on A100 cards (an estimate from its FLOPs).
# Score: 50.7 mIoU, 51.7 at several scales (--tta) (published, github.com/EasonXiao-888/GrootVL).
# No code of the published detectors and segmentors was released. Here: VMamba's recipe, with the drop path of the
# classifier, and without norms on the maps, which are normed already.
# The ImageNet weights lie in a folder that only a browser can open (see the model card): put them into the file named
# below.
# Written by `make cards` from configs/recipes.yaml.
_base_ = [
    '../../_base_/models/upernet.py',
    '../../_base_/datasets/ade20k.py',
    '../../_base_/schedules/ade20k_160k.py',
    '../../_base_/segmentation_runtime.py',
]

model = dict(
    backbone=dict(
        name='grootvl_small',
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/grootvl_small.pth'),
        output_norm=False),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384))
