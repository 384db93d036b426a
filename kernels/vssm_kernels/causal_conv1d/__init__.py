"""The short causal convolution in front of a Mamba scan, along any scan order: the public function and its op."""

from __future__ import annotations

from torch import Tensor

from vssm_kernels.causal_conv1d import native_cpu, reference, standard, triton_fused
from vssm_kernels.causal_conv1d.arguments import ConvArguments
from vssm_kernels.op import Op
from vssm_kernels.orders import ScanTable, as_scan_table

OP = Op(
    "causal_conv1d",
    ConvArguments,
    [native_cpu.BACKEND, triton_fused.BACKEND, reference.BACKEND],
    standard=standard.conv,
)


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, order: ScanTable | Tensor, *, silu: bool = False
) -> Tensor:
    """Depthwise convolution over the last few tokens that each direction has visited.

    With `width` taps, direction k at step l writes to token order[k, l]

        bias[k] + sum_j weight[k, :, j] x[order[k, l - (width - 1) + j]]

    Before the first step and at empty steps (-1) zeros are read. A token visited twice by a direction receives the
    sum, one never visited zero, as in `selective_scan`. Sums are float32 (float64 for float64 inputs).

    Args:
        x: (batch, tokens, channels), read by every direction.
        weight: (directions, channels, width), the last tap being the token itself.
        bias: (directions, channels), or None.
        order: the token that each direction visits at each step: a ScanTable, or (directions, steps) int32, which is
            copied and checked at its first use.
        silu: pass each step's output through silu before it is written.

    Returns:
        (batch, tokens, directions, channels), in x's dtype.

    Raises:
        ValueError: shapes or devices that do not fit, or an order that leaves the tokens.
        TypeError: integers where floats belong, or an order that is not int32.

    Source: Mamba, arXiv 2312.00752; both directions of Vim, arXiv 2401.09417.

    >>> import torch
    >>> both_ways = torch.tensor([[0, 1, 2], [2, 1, 0]], dtype=torch.int32)
    >>> previous_token = torch.tensor([1.0, 0.0]).expand(2, 1, 2)
    >>> causal_conv1d(torch.tensor([[[1.0], [2.0], [3.0]]]), previous_token, None, both_ways)[0, :, :, 0].T
    tensor([[0., 1., 2.],
            [2., 3., 0.]])
    """
    args = ConvArguments(x, weight, bias, order, silu)
    if not isinstance(order, ScanTable):
        OP.check(args)
        args = args._replace(order=as_scan_table(order, args.directions, x.shape[1], x.device))
    return OP(args)
