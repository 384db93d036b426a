"""Gradient checkpointing of the models' blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from timm.models import checkpoint
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def recomputed(block: nn.Module, x: Tensor, *grid: int) -> Tensor:
    """block(x, *grid), run once more in the backward instead of keeping its activations.

    Running statistics of batch norms move in the first run alone, as they do without checkpointing and compiled.
    """
    if torch.compiler.is_dynamo_compiling():
        return checkpoint(block, x, *grid)
    again = False

    def run(x: Tensor, *grid: int) -> Tensor:
        nonlocal again
        if again:
            with _statistics_kept(block):
                return block(x, *grid)
        again = True
        return block(x, *grid)

    return checkpoint(run, x, *grid)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Batch norms have copies of their running statistics meanwhile."""
    norms = [(norm, dict(norm._buffers)) for norm in block.modules() if isinstance(norm, _BatchNorm) and norm.training]
    for norm, buffers in norms:
        norm._buffers.update({name: buffer if buffer is None else buffer.clone() for name, buffer in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in norms:
            norm._buffers.update(buffers)
