# The fine-tuning of Vim's stride-8 models: 30 epochs at a constant rate of 1e-5 (the official script sets the warm-up
# rate and the lowest rate to the scaled base rate), next to no weight decay, float32. Source: vim/scripts/ft-vim-*.sh.
_base_ = '../default_runtime.py'

train_cfg = dict(by_epoch=True, max_epochs=30, val_interval=1)
auto_scale_lr = dict(base_batch_size=1024)
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='GroupMatcherOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-5, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-8))
default_hooks = dict(ema=dict(type='EMAHook', momentum=4e-5))
