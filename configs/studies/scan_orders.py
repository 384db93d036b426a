# Command: python tools/compare.py configs/studies/scan_orders.py --parallel 27 --out docs/studies
# Cost: 2 H200, 4.5 minutes: 27 trainings, all at a time, then one model after the other is measured.
# The four families' tiny models, and vmamba_tiny under other scan orders than its own, all trained alike.
title = 'Families and scan orders on the embedded set'
recipe = 'recipe.py'  # beside this file
seeds = (0, 1, 2)
# Each label with what its run changes of the recipe.
runs = {
    # Vim's patches have 16 pixels: 36 of them here. With a stride of 8, as in vim_tiny_plus, it is given 121.
    'vim_tiny': dict(model=dict(backbone=dict(name='vim_tiny', img_size=96))),
    'vim_tiny_plus': dict(model=dict(backbone=dict(name='vim_tiny_plus', img_size=96))),
    'msvmamba_tiny': dict(model=dict(backbone=dict(name='msvmamba_tiny'))),
    'efficientvmamba_tiny': dict(model=dict(backbone=dict(name='efficientvmamba_tiny'))),
    'vmamba_tiny, cross (its own)': dict(model=dict(backbone=dict(name='vmamba_tiny'))),
    'vmamba_tiny, bidirectional': dict(model=dict(backbone=dict(name='vmamba_tiny', scan_order='bidirectional'))),
    'vmamba_tiny, zigzag': dict(model=dict(backbone=dict(name='vmamba_tiny', scan_order='zigzag'))),
    'vmamba_tiny, hilbert': dict(model=dict(backbone=dict(name='vmamba_tiny', scan_order='hilbert'))),
    'vmamba_tiny, random': dict(model=dict(backbone=dict(name='vmamba_tiny', scan_order='random'))),
}
# Throughput and memory are measured afterwards, each model alone.
measured = dict(size=96, batch=512, seconds=1)
