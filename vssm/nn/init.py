"""Initialisations that several families share."""

from __future__ import annotations

from torch import nn

from vssm.nn.linear import GroupLinear
from vssm.nn.ssm import SelectiveScan


def initialise_linear_layers(model: nn.Module, scans: bool = False) -> None:
    """Set linear layers to normal weights of deviation 0.02 and zero biases, and leave every other parameter.

    The initialisation of VMamba's official code (from Swin) and of most families after it.

    Args:
        model: what is initialised, in place.
        scans: likewise the projections of every SelectiveScan. In the official code of LocalVim, PlainMamba and
            MambaVision these are linear layers too, so that this replaces Mamba's initialisation of the step sizes.

    >>> layer = nn.Linear(4, 3)
    >>> initialise_linear_layers(layer)
    >>> layer.bias.tolist()
    [0.0, 0.0, 0.0]
    """
    # official: trunc_normal_, cut at +-2. Here: normal_, because a cut 100 deviations away cuts nothing, while in
    # float32 one draw in 2^24 comes out of trunc_normal_ as -2 itself.
    for module in model.modules():
        weights, bias = [], None
        if isinstance(module, nn.Linear | GroupLinear):
            weights, bias = [module.weight], module.bias
        elif scans and isinstance(module, SelectiveScan):
            weights, bias = [module.x_proj, module.dt_proj], module.dt_bias
        for weight in weights:
            if not weight.is_meta:  # nothing is drawn there, and torch takes milliseconds to say so
                nn.init.normal_(weight, std=0.02)
        if bias is not None:
            nn.init.zeros_(bias)
