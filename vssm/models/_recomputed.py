"""Gradient checkpointing of the models' blocks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from timm.models import checkpoint
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def recomputed(block: Callable[..., Tensor], x: Tensor, *grid: int) -> Tensor:
    """block(x, *grid), of a module or a module's method, run once more in the backward instead of saving activations.

    The first run alone moves running statistics of batch norms, as a run without checkpointing does.
    """
    if torch.compiler.is_dynamo_compiling():  # which recomputes operations, not calls of modules
        return checkpoint(block, x, *grid)
    module = getattr(block, "__self__", block)
    contexts = nullcontext(), _CopiedStatistics(module)
    return checkpoint(block, x, *grid, use_reentrant=False, context_fn=lambda: contexts)


class _CopiedStatistics:
    """Inside, batch norms in training have copies of their running statistics. Entered once for each backward."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __enter__(self) -> None:
        norms = [part for part in self.module.modules() if isinstance(part, _BatchNorm) and part.training]
        self.own = [(norm, dict(norm._buffers)) for norm in norms]
        for norm, buffers in self.own:
            norm._buffers.update({name: held if held is None else held.clone() for name, held in buffers.items()})

    def __exit__(self, *raised: object) -> None:
        for norm, buffers in self.own:
            norm._buffers.update(buffers)
