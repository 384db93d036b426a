"""torch.compile as these models need it."""

from __future__ import annotations

from typing import Any

from torch import nn


def compile_module(module: nn.Module, **options: Any) -> None:
    """Compile a module in place, without two optimisations of inductor that give wrong numbers on a GPU.

    Both fuse kernels that read memory in different orders, and give no warning where that fails. They are turned off
    for the whole process, because inductor reads its switches when a module is first called:

    - mix-order reductions (torch 2.10 and later) sum the gradients of a norm's weight in the kernel that computes the
      gradient of its input, and in some graphs leave memory unwritten:
      https://github.com/pytorch/pytorch/issues/190796 and https://github.com/pytorch/pytorch/issues/193061;
    - with loop ordering after fusion, the logits of vanilla_vmamba under bfloat16 autocast are off by a tenth and
      differ from call to call; without it they are right (torch 2.11).

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

    config.loop_ordering_after_fusion = False
    if hasattr(config.triton, "mix_order_reduction"):
        config.triton.mix_order_reduction = False
    module.compile(**options)
