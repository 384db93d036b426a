"""The wavefront scan of a map: the public function and its op."""

from __future__ import annotations

from torch import Tensor

from vssm_kernels.op import Op
from vssm_kernels.wavefront_scan import native_cpu, reference, triton_fused
from vssm_kernels.wavefront_scan.arguments import WavefrontArguments

OP = Op("wavefront_scan", WavefrontArguments, [native_cpu.BACKEND, triton_fused.BACKEND, reference.BACKEND])


def wavefront_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    delta_bias: Tensor | None = None,
    reverse: bool = False,
) -> Tensor:
    """Selective state-space recurrence over two dimensions: states come from above and from the left (Mamba2D, arXiv
    2412.16146).

    Each of the two ways into a position, top and left, has step sizes delta' = softplus(delta + delta_bias), rates and
    an input matrix of its own:

        top  = exp(delta'_top A_top) h[i-1, j] + delta'_top B_top u
        left = exp(delta'_left A_left) h[i, j-1] + delta'_left B_left u

    The state h[i, j] is (top + left) / 2. In the first row it is left, the corner included, and in the rest of the
    first column top. It is read as y = C h + D u. Arithmetic and state are float32 (float64 for float64 inputs)
    whatever the activations are.

    Args:
        u: (batch, height, width, channels).
        delta: (batch, height, width, 2, channels), step sizes of top and left before bias and softplus.
        A: (2, channels, state), decay rates, negative.
        B: (batch, height, width, 2, state).
        C: (batch, height, width, state).
        D: (channels,), skip connection.
        delta_bias: (2, channels), added to delta.
        reverse: walk from the last corner to the first: states come from below and from the right, as if the maps
            were turned by 180 degrees.

    Returns:
        (batch, height, width, channels) in u's dtype.

    Raises:
        ValueError: shapes or devices that do not fit.
        TypeError: integers where floats belong.

    >>> import torch
    >>> u, delta, B = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 2, 4), torch.randn(2, 3, 5, 2, 6)
    >>> wavefront_scan(u, delta, -torch.rand(2, 4, 6), B, C=torch.randn(2, 3, 5, 6)).shape
    torch.Size([2, 3, 5, 4])
    """
    return OP(WavefrontArguments(u, delta, A, B, C, D, delta_bias, reverse))
