# Norms have no weight decay where official names call them norm. Some batch norms that they call so are called bn here,
# and named by where they are (MambaVision, Spatial-Mamba, VSSD). Official: norms with names of other words decay, as
# VMamba's behind its stem and in its downsampling. Here: only batch norms do, as the names of the others have norm in
# them.
_norms_without_decay = {
    'norm': dict(decay_mult=0.0),
    'mixer.0.bn': dict(decay_mult=0.0),
    'mixer.1.bn': dict(decay_mult=0.0),
    'stem.conv1.bn': dict(decay_mult=0.0),
    'stem.narrow.bn': dict(decay_mult=0.0),
    'stem.residual.0.bn': dict(decay_mult=0.0),
    'stem.residual.1.bn': dict(decay_mult=0.0),
    'stem.widen.bn': dict(decay_mult=0.0),
    'downsample.narrow.bn': dict(decay_mult=0.0),
}
