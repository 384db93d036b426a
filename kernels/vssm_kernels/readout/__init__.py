"""What a model reads out of its states: the public function and its op."""

from __future__ import annotations

from torch import Tensor

from vssm_kernels.dispatch import Backend, why_not_beside
from vssm_kernels.op import Op
from vssm_kernels.readout import reference, triton_fused
from vssm_kernels.readout.arguments import ReadoutArguments

# The reference's functions, which autograd does not record: nothing but what is given is saved.
_RECOMPUTING = Backend("recomputing", reference.read, reference.read_backward, why_not_beside(triton_fused.BACKEND))
OP = Op("readout", ReadoutArguments, [_RECOMPUTING, triton_fused.BACKEND, reference.BACKEND], fused=True)


def readout(states: Tensor, C: Tensor, D: Tensor, u: Tensor) -> Tensor:
    """The output of scans with one state, y = C h + D u, summed over the directions.

    `selective_scan` reads its states out itself. This is for states that something changes between the two, in
    float32 (float64 for float64 inputs), rounded once. Eager on a GPU it is one kernel each way. Compilers are given
    plain operations of torch, which they fuse as well, and so are CPUs.

    Args:
        states: (batch, directions, tokens, channels).
        C: (batch, tokens, directions), any strides.
        D: (directions, channels).
        u: (batch, tokens, channels), the input of the scans.

    Returns:
        (batch, tokens, channels), in u's dtype.

    Raises:
        ValueError: shapes or devices that do not fit.
        TypeError: integers where floats belong.

    Source: Spatial-Mamba, arXiv 2410.15091, equation of the output.

    >>> import torch
    >>> readout(torch.ones(1, 1, 2, 3), torch.tensor([[[2.0], [3.0]]]), torch.ones(1, 3), torch.ones(1, 2, 3))[0]
    tensor([[3., 3., 3.],
            [4., 4., 4.]])
    """
    return OP(ReadoutArguments(states, C, D, u))
