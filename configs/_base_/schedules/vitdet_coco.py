# The training of LocalVim's and LBVim's detectors: 184375 steps as Vim's, in float32, weight decay 0.05, gradients
# clipped at 35. Source: detection/configs/local_mamba and detection/vitdet of hunto/LocalMamba, which LBMamba took over.
# Official: layer decay of 0.7 in which the layers are not found, so that the embeddings alone are slowed, by 0.7 to the
# power of 13, and norms decay; images are padded with grey. Here: so too, but that norms do not decay, and images are
# padded with the mean colour.
_base_ = './vim_coco_100e.py'

optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=35, norm_type=2),
    paramwise_cfg=dict(
        custom_keys={
            'norm': dict(decay_mult=0.0),
            'patch_embed': dict(lr_mult=0.7**13),
            'pos_embed': dict(lr_mult=0.7**13, decay_mult=0.0),
        }))
