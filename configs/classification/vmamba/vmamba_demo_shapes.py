# Command: python tools/train.py configs/classification/vmamba/vmamba_demo_shapes.py
# Cost: 2 CPU cores, about 5 minutes.
# Score: 98.1 % top-1 on held-out images.
# A small VMamba on the embedded set at 64 pixels: the classifier that segmentation starts from in
# configs/segmentation/vmamba/upernet_vmamba_demo_shapes.py.
_base_ = '../vim/vim_demo_shapes.py'

model = dict(
    backbone=dict(
        _delete_=True,
        name='vmamba_tiny',
        num_classes=10,
        dims=(32, 64, 128, 256),
        depths=(1, 1, 2, 1)))
