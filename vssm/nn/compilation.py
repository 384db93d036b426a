"""torch.compile as these models need it, and what the tools run a model with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vssm.nn.graphs import graph_module


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


def run_fast(module: nn.Module, compiled: bool | dict[str, Any] | None, tell: Callable[[str], None]) -> None:
    """Let a module run as a tool was asked to, in place; unasked as CUDA graphs, where it is on a GPU.

    Args:
        module: on the device where it will run.
        compiled: True, or options, for torch.compile; False for neither; None for what is fast and needs no compiler.
        tell: is given the sentence that says what is used, and later what keeps calls from being replayed as a graph.

    >>> run_fast(nn.Linear(2, 3), {"backend": "eager"}, print)
    The model is compiled on its first steps, which are slow.
    """
    if compiled not in (None, False):
        compile_module(module, **(compiled if isinstance(compiled, dict) else {}))
        tell("The model is compiled on its first steps, which are slow.")
    elif _is_on_gpu(module):
        if compiled is False:
            tell("The model runs eagerly.")
        elif torch.distributed.is_available() and torch.distributed.is_initialized():
            tell("The model runs eagerly, as always with several processes: CUDA graphs are for one.")
        else:
            graph_module(module, tell)
            tell("From the third of equal steps on the model runs as CUDA graphs; --compile off leaves them out.")


def _is_on_gpu(module: nn.Module) -> bool:
    return next((parameter.is_cuda for parameter in module.parameters()), False)
