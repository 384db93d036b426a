# Command: python tools/compare.py configs/studies/mixers.py --parallel 33 --out docs/studies
# Cost: 5.4 minutes on 2 H200 with 32 cores.
# vmamba_tiny with other mixers than its own, along several scan orders, all trained alike.
title = 'Mixers and scan orders on the embedded set'
recipe = 'recipe.py'  # beside this file
seeds = (0, 1, 2)
# Each label with what its run changes of the recipe.
runs = {
    's6, cross (its own)': dict(model=dict(backbone=dict(name='vmamba_tiny'))),
    's6, bidirectional': dict(model=dict(backbone=dict(name='vmamba_tiny', scan_order='bidirectional'))),
    'ssd, cross': dict(model=dict(backbone=dict(name='vmamba_tiny', mixer='ssd'))),
    'ssd, bidirectional': dict(model=dict(backbone=dict(name='vmamba_tiny', mixer='ssd', scan_order='bidirectional'))),
    'ssd, hilbert': dict(model=dict(backbone=dict(name='vmamba_tiny', mixer='ssd', scan_order='hilbert'))),
    'ssd, raster': dict(model=dict(backbone=dict(name='vmamba_tiny', mixer='ssd', scan_order='raster'))),
    'hydra, bidirectional': dict(
        model=dict(backbone=dict(name='vmamba_tiny', mixer='hydra', scan_order='bidirectional'))),
    'hydra, cross': dict(model=dict(backbone=dict(name='vmamba_tiny', mixer='hydra'))),
    'noncausal_ssd': dict(model=dict(backbone=dict(name='vmamba_tiny', mixer='noncausal_ssd'))),
    'tree': dict(model=dict(backbone=dict(name='vmamba_tiny', mixer='tree'))),
    'wavefront': dict(model=dict(backbone=dict(name='vmamba_tiny', mixer='wavefront'))),
}
# Throughput and memory are measured afterwards, each model alone.
measured = dict(size=96, batch=512, seconds=1)
