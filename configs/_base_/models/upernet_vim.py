# UPerNet on four depths of Vim, resized to strides 4 to 32 as in BEiT (arXiv 2106.08254), evaluated on overlapping
# windows. Source: seg/configs/vim/upernet of hustvl/Vim.
# Official: vim_tiny's maps are the outputs of single mixers, and there is no class token. Here: the maps are the
# residual stream, as official for vim_small; the class token stays where the ImageNet weights have it.
_base_ = 'mmseg::_base_/models/upernet_beit.py'

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(
        _delete_=True, type='VSSMBackbone', out_indices=(5, 11, 17, 23), output_norm=False, img_size=512),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)))
