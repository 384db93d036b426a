"""Non-causal state-space duality: the public function and its op."""

from __future__ import annotations

from torch import Tensor

from vssm_kernels.dispatch import Backend
from vssm_kernels.noncausal_ssd import reference
from vssm_kernels.noncausal_ssd.arguments import SSDArguments
from vssm_kernels.op import Op

# The reference's functions, but that autograd does not record them: in compiled models under autocast the backward's
# products would be narrow, too.
RECOMPUTING = Backend("recomputing", reference.duality, reference.duality_backward, why_not=lambda args: None)

OP = Op("noncausal_ssd", SSDArguments, [RECOMPUTING, reference.BACKEND])


def noncausal_ssd(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    """Every token adds to one state per head, and every token reads the whole of it (VSSD, arXiv 2407.18559).

    With the step size delta' = softplus(delta + delta_bias), for each head

        h = sum over all tokens s of B[s] (A delta'[s] u[s])^T;    y[t] = C[t] h + D u[t]

    No order and no decay: A weighs what a token adds. Two matrix products, whose cost is linear in the tokens. The sum
    is not divided by their number and leaves the range of float16, so arithmetic, state and output are float32 (float64
    for float64 inputs) whatever the activations are, and the backward is.

    Args:
        u: (batch, tokens, heads, channels).
        delta: (batch, tokens, heads), step size before bias and softplus.
        A: (heads,), positive.
        B, C: (batch, tokens, state), the same for all heads.
        D: (heads,), skip connection.
        delta_bias: (heads,), added to delta.

    Returns:
        (batch, tokens, heads, channels) in float32 at least.

    Raises:
        ValueError: shapes or devices that do not fit.
        TypeError: integers where floats belong.

    >>> import torch
    >>> u, delta, B, C = (torch.randn(2, 6, *size) for size in ((4, 8), (4,), (16,), (16,)))
    >>> noncausal_ssd(u, delta, torch.ones(4), B, C, D=torch.ones(4), delta_bias=torch.zeros(4)).shape
    torch.Size([2, 6, 4, 8])
    """
    return OP(SSDArguments(u, delta, A, B, C, D, delta_bias))
