"""The selective scan along any scan order: the public function and its op."""

from __future__ import annotations

import torch
from torch import Tensor

from vssm_kernels.op import Op
from vssm_kernels.orders import ScanTable, as_scan_table
from vssm_kernels.selective_scan import grouped, native_cpu, reference, standard, triton_fused
from vssm_kernels.selective_scan.arguments import ScanArguments
from vssm_kernels.selective_scan.low_rank import with_low_rank
from vssm_kernels.sum_gate import sum_gate

OP = Op(
    "selective_scan",
    ScanArguments,
    [with_low_rank(module.BACKEND) for module in (native_cpu, triton_fused, grouped, reference)],
    standard=standard.scan,
)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor | None,
    D: Tensor | None = None,
    *,
    delta_bias: Tensor | None = None,
    delta_weight: Tensor | None = None,
    order: ScanTable | Tensor | None = None,
    segment: int | None = None,
    dtype: torch.dtype | None = None,
    merge: bool = False,
) -> Tensor:
    """Selective state-space recurrence of every direction along its scan order (Mamba, arXiv 2312.00752).

    At step l, direction k visits token t = order[k, l], with step size delta' = softplus(delta[t] + delta_bias):

        h = exp(delta' A) h + delta' B[t] u[t];    y[t] = C[t] h + D u[t]

    Tokens stay in raster order in memory, channels last; only the walk differs. Arithmetic and state are float32
    (float64 for float64 inputs) whatever the activations are.

    Args:
        u: (batch, tokens, channels), read by all directions, or (batch, tokens, directions, channels).
        delta: (batch, tokens, directions, channels), step size before bias and softplus; or with `delta_weight`
            (batch, tokens, directions, rank).
        A: (directions, channels, state), decay rates, negative.
        B: (batch, tokens, directions, state).
        C: (batch, tokens, directions, state), or None to return the states themselves.
        D: (directions, channels), skip connection; needs C.
        delta_bias: (directions, channels), added to delta.
        delta_weight: (directions, channels, rank), or the same `side_by_side`: the step size is this times delta. The
            op computes the product, the largest tensor of a block, once more in the backward instead of saving it.
        order: the token that each direction visits at each step: a ScanTable, or (directions, steps) int32, which is
            copied and checked at its first use. -1 is an empty step, which reads zeros and writes nothing while the
            state still decays. A token visited twice by one direction receives the sum, one never visited zero. None
            is raster order for every direction.
        segment: the state starts anew every `segment` steps; None never.
        dtype: of the result; None is u's.
        merge: return the sum over the directions.

    Returns:
        (batch, tokens, directions, channels) in `dtype`; states have a last dimension `state`; with merge the
        directions are summed, in float32, and gone.

    Raises:
        ValueError: shapes or devices that do not fit, or an order that leaves the tokens.
        TypeError: integers where floats belong, or an order that is not int32.

    >>> import torch
    >>> u, delta = torch.randn(2, 6, 4), torch.randn(2, 6, 2, 4)
    >>> A, B, C = -torch.rand(2, 4, 3), torch.randn(2, 6, 2, 3), torch.randn(2, 6, 2, 3)
    >>> both_ways = torch.stack([torch.arange(6), torch.arange(6).flip(0)]).int()
    >>> selective_scan(u, delta, A, B, C, order=both_ways, merge=True).shape
    torch.Size([2, 6, 4])
    """
    if segment is not None and segment < 1:
        raise ValueError(
            f"segment is {segment}; expected a number of steps of at least 1, or None to never reset the state"
        )
    args = ScanArguments(u, delta, A, B, C, D, delta_bias, delta_weight, None, order, segment or 0, dtype)
    if order is not None and not isinstance(order, ScanTable):
        OP.check(args)
        args = args._replace(order=as_scan_table(order, args.directions, args.tokens, u.device))
    y = OP(args)
    if not merge:
        return y
    if args.directions == 1:
        return y.squeeze(2)
    return sum_gate(y, None) if C is not None else sum_gate(y.flatten(3), None).unflatten(2, y.shape[3:])
