"""The mixers that a model's blocks may have in place of their own, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from vssm.nn import SS2D, SSD, HydraMixer, NoncausalSSD, TreeMixer, WavefrontMixer

MixerMaker = Callable[..., nn.Module]

# Each makes a mixer of maps from a number of channels, and takes `scan_order` where it walks along one.
MIXERS: dict[str, MixerMaker] = {
    "s6": SS2D,
    "ssd": SSD,
    "noncausal_ssd": NoncausalSSD,
    "hydra": HydraMixer,
    "tree": TreeMixer,
    "wavefront": WavefrontMixer,
}


def resolve_mixer(mixer: str | MixerMaker) -> MixerMaker:
    """What a name of `MIXERS` stands for; anything else is returned as it is.

    Raises:
        ValueError: an unknown name.

    >>> resolve_mixer("ssd").__name__
    'SSD'
    """
    if not isinstance(mixer, str):
        return mixer
    if mixer not in MIXERS:
        raise ValueError(f"no mixer is named {mixer!r}; known: {', '.join(MIXERS)}")
    return MIXERS[mixer]


def make_mixer(mixer: MixerMaker, dim: int, device: Any, dtype: Any, **options: Any) -> nn.Module:
    """A mixer of so many channels, with those of the options that it takes and does not have already.

    >>> from functools import partial
    >>> from vssm.scan import raster
    >>> make_mixer(partial(SSD, expansion=3), 8, None, None, expansion=1, scan_order=raster).inner
    24
    """
    bound = getattr(mixer, "keywords", {})
    taken = {name: value for name, value in options.items() if takes(mixer, name) and name not in bound}
    return mixer(dim, **taken, device=device, dtype=dtype)


def takes(mixer: MixerMaker, argument: str) -> bool:
    """Whether a mixer has an argument of this name, such as `scan_order`."""
    return argument in inspect.signature(mixer).parameters
