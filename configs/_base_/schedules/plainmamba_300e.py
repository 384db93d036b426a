# PlainMamba's recipe: 300 epochs, 20 of warm-up, cosine by steps from 2e-3 (at 2048 images) to 1 %, AdamW, gradients
# clipped at 5, averaged weights, mixed precision; see the configs for what differs between sizes. Source: configs of
# ChenhongyiYang/PlainMamba.
_base_ = './swin_300e.py'

auto_scale_lr = dict(base_batch_size=2048)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
