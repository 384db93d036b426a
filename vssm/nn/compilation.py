"""torch.compile as these models need it."""

from __future__ import annotations

from typing import Any

from torch import nn


def compile_module(module: nn.Module, **options: Any) -> None:
    """Compile a module in place, without an optimisation of torch's that makes gradients wrong.

    Inductor's mix-order reductions, on a GPU from torch 2.10 on, sum the gradients of a norm's weight in the kernel
    that makes the gradient of its input. In some graphs they leave memory unwritten, and gradients are silently wrong:
    https://github.com/pytorch/pytorch/issues/190796 and https://github.com/pytorch/pytorch/issues/193061. They are
    turned off for the whole process, as inductor reads its switches when a module is first called.

    Args:
        module: its `forward` is compiled, when it is first called.
        options: of torch.compile.

    >>> import torch
    >>> layer = nn.Linear(2, 3)
    >>> compile_module(layer, backend="eager")
    >>> layer(torch.randn(1, 2)).shape
    torch.Size([1, 3])
    """
    from torch._inductor import config  # here: importing inductor takes seconds

    if hasattr(config.triton, "mix_order_reduction"):
        config.triton.mix_order_reduction = False
    module.compile(**options)
