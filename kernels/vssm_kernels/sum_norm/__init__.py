"""The sum over scan directions and the norm that follows it, or the norm alone: public function and registration."""

from __future__ import annotations

import torch
from torch import Tensor

from vssm_kernels.dispatch import register
from vssm_kernels.sum_norm import compiled, native_cpu, reference, triton_fused
from vssm_kernels.sum_norm.arguments import NormArguments, check_shapes

_registry = register("sum_norm", [native_cpu.BACKEND, triton_fused.BACKEND, reference.BACKEND])


def sum_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None = None,
    *,
    eps: float,
    center: bool = True,
    dtype: torch.dtype | None = None,
    merge: bool = True,
) -> Tensor:
    """Layer norm or root-mean-square norm of the sum over directions.

    The sum is added up in float32 and rounded to x's dtype, as `selective_scan` does with merge; the norm is computed
    in float32 (float64 for float64 inputs) whatever the dtypes are.

    Args:
        x: (..., directions, channels), or (..., channels) without merge.
        weight, bias: (channels,), of any float dtype, or None.
        eps: added to the variance, or to the mean square.
        center: subtract the mean (layer norm, arXiv 1607.06450), or not (RMS norm, arXiv 1910.07467).
        dtype: of the result; None is x's.
        merge: False where there are no directions to sum.

    Returns:
        (..., channels).

    Raises:
        ValueError: shapes that do not fit, or an eps that is not positive.

    >>> import torch
    >>> directions = torch.tensor([[1.0, 2.0, 3.0], [0.0, 2.0, 4.0]])
    >>> sum_norm(directions, torch.ones(3), eps=1e-5)
    tensor([-1.2247,  0.0000,  1.2247])
    """
    args = NormArguments(x, weight, bias, eps, center, x.dtype if dtype is None else dtype, merge)
    check_shapes(args)
    if torch.compiler.is_compiling():
        return compiled.norm(args)
    return _registry.choose(args).forward(args)
