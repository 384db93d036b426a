"""State-space duality along any scan order: the public function and its op."""

from __future__ import annotations

from torch import Tensor

from vssm_kernels.dispatch import Backend, why_not_beside
from vssm_kernels.op import Op
from vssm_kernels.orders import ScanTable, as_scan_table
from vssm_kernels.ssd import chunked, reference, triton_fused
from vssm_kernels.ssd.arguments import SSDArguments

CHUNKED = Backend("chunked", chunked.duality, chunked.duality_backward, why_not_beside(triton_fused.BACKEND))
OP = Op(
    "ssd",
    SSDArguments,
    [CHUNKED, triton_fused.BACKEND, reference.BACKEND],
    standard=lambda args: chunked.duality(args)[0],
)


def ssd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    delta_bias: Tensor | None = None,
    initial: Tensor | None = None,
    order: ScanTable | Tensor | None = None,
    shift: bool = False,
    merge: bool = False,
) -> Tensor:
    """State-space duality of every direction along its scan order (Mamba-2, arXiv 2405.21060).

    The selective scan with one decay per head, and thus made of matrix products. At step l, direction k visits token
    t = order[k, l], with step size delta' = softplus(delta[t] + delta_bias), and for each head the matrix

        h = exp(delta' A) h + delta' u[t] B[t]^T;    y[t] = h C[t] + D u[t]

    Decays, sums and states are float32 (float64 for float64 inputs) whatever the activations are.

    Args:
        u: (batch, tokens, heads, channels), read by all directions, or (batch, tokens, directions, heads, channels).
        delta: (batch, tokens, directions, heads), step size before bias and softplus.
        A: (directions, heads), decay rates, negative.
        B, C: (batch, tokens, directions, groups, state); consecutive heads share a group, whose number divides theirs.
        D: (directions, heads), skip connection; none with `shift`.
        delta_bias: (directions, heads), added to delta.
        initial: (batch, directions, heads, channels, state), the state before the first step; None for zeros.
        order: the token that each direction visits at each step, as in `selective_scan`: a ScanTable, or
            (directions, steps) int32. -1 is an empty step. None is raster order for every direction.
        shift: write every step's output to the token of the next step, so that no token gives anything to itself; the
            first receives zeros. Two directions so, one the reverse of the other, and a diagonal make a quasiseparable
            matrix (Hydra, arXiv 2407.09941).
        merge: return the sum over the directions.

    Returns:
        (batch, tokens, directions, heads, channels) in u's dtype, with merge without the directions.

    Raises:
        ValueError: shapes or devices that do not fit, or an order that leaves the tokens.
        TypeError: integers where floats belong, or an order that is not int32.

    >>> import torch
    >>> u, delta = torch.randn(2, 6, 4, 8), torch.randn(2, 6, 2, 4)
    >>> A, B, C = -torch.rand(2, 4), torch.randn(2, 6, 2, 1, 16), torch.randn(2, 6, 2, 1, 16)
    >>> both_ways = torch.stack([torch.arange(6), torch.arange(6).flip(0)]).int()
    >>> ssd(u, delta, A, B, C, order=both_ways, merge=True).shape
    torch.Size([2, 6, 4, 8])
    """
    args = SSDArguments(u, delta, A, B, C, D, delta_bias, initial, None, order, shift, merge)
    if order is not None and not isinstance(order, ScanTable):
        OP.check(args)
        args = args._replace(order=as_scan_table(order, args.directions, args.tokens, u.device))
    return OP(args)
