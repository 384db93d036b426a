"""The sum over scan directions and the norm that follows it, or the norm alone: the public function and its op."""

from __future__ import annotations

import torch
from torch import Tensor

from vssm_kernels.gpu import why_no_triton
from vssm_kernels.op import Op, needs_gradient
from vssm_kernels.sum_norm import native_cpu, reference, triton_fused
from vssm_kernels.sum_norm.arguments import NormArguments


def _fused(args: NormArguments) -> bool:
    """Whether compilers make as good a kernel: of all but layer norms on a GPU.

    Of these inductor makes two passes over memory, where our kernel makes one: with plain layer norms, the kernels of
    `vmamba_tiny` took longer compiled than in eager mode. A root-mean-square norm it makes in one pass, and the
    addition before it too.
    """
    return not (args.center and args.x.is_cuda) or why_no_triton(*args.tensors()) is not None


OP = Op(
    "sum_norm",
    NormArguments,
    [native_cpu.BACKEND, triton_fused.BACKEND, reference.BACKEND],
    fused=_fused,
    saves_sums=True,
)


def sum_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None = None,
    *,
    eps: float,
    center: bool = True,
    dtype: torch.dtype | None = None,
    merge: bool = False,
) -> Tensor:
    """Layer norm or root-mean-square norm, with `merge` of the sum over directions.

    The sum is added up in float32 and rounded to x's dtype, as `selective_scan` does with merge; the norm is computed
    in float32 (float64 for float64 inputs) whatever the dtypes are.

    Args:
        x: (..., channels), or with merge (..., directions, channels).
        weight, bias: (channels,), of any float dtype, or None.
        eps: added to the variance, or to the mean square.
        center: subtract the mean (layer norm, arXiv 1607.06450), or not (RMS norm, arXiv 1910.07467).
        dtype: of the result; None is x's.
        merge: sum over the directions first.

    Returns:
        (..., channels).

    Raises:
        ValueError: shapes or devices that do not fit, or an eps that is not positive.

    >>> import torch
    >>> directions = torch.tensor([[1.0, 2.0, 3.0], [0.0, 2.0, 4.0]])
    >>> sum_norm(directions, torch.ones(3), eps=1e-5, merge=True)
    tensor([-1.2247,  0.0000,  1.2247])
    """
    args = NormArguments(x, weight, bias, float(eps), center, x.dtype if dtype is None else dtype, merge)
    if torch.compiler.is_compiling() and not OP.fused(args):
        args.check()
        return OP(_for_inductor(args)).view(args.output_shape)
    return OP(args)


def _for_inductor(args: NormArguments) -> NormArguments:
    """The same norm of a view that inductor does not copy."""
    x, merge = args.x, args.directions > 1
    if needs_gradient(args.tensors()):
        # As rows: inductor takes four dimensions for (batch, channels, height, width), and copies what is saved for the
        # backward to its own idea of channels-last.
        x = x.reshape(-1, *x.shape[-2:]) if merge else x.reshape(-1, x.shape[-1])
    elif not merge:
        # As it is: of a sum that is not saved inductor writes out the view, and adds up the sum again for the next.
        x = x.reshape(args.output_shape)
    weight, bias = (None if tensor is None else tensor.contiguous() for tensor in (args.weight, args.bias))
    return args._replace(x=x, weight=weight, bias=bias, merge=merge)
