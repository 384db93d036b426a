"""Non-causal state-space duality: one state over all tokens, which every token reads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.op import without_autocast


def noncausal_ssd(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    """Every token adds to one state per head, and every token reads the whole of it (VSSD, arXiv 2407.18559).

    With the step size delta' = softplus(delta + delta_bias), for each head

        h = sum over all tokens s of B[s] (A delta'[s] u[s])^T;    y[t] = C[t] h + D u[t]

    No order and no decay: A weighs what a token adds. Two matrix products, whose cost is linear in the tokens. The sum
    is not divided by their number and leaves the range of float16, so arithmetic, state and output are float32 (float64
    for float64 inputs) whatever the activations are.

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
        ValueError: shapes that do not fit.

    >>> u, delta, B, C = (torch.randn(2, 6, *size) for size in ((4, 8), (4,), (16,), (16,)))
    >>> noncausal_ssd(u, delta, torch.ones(4), B, C, D=torch.ones(4), delta_bias=torch.zeros(4)).shape
    torch.Size([2, 6, 4, 8])
    """
    _check(u, delta, A, B, C, D, delta_bias)
    dtype = torch.promote_types(u.dtype, torch.float32)
    with without_autocast(u.device):
        x, delta, A, B, C, D, delta_bias = (each.to(dtype) for each in (u, delta, A, B, C, D, delta_bias))
        added = x * (A * F.softplus(delta + delta_bias))[..., None]
        h = B.transpose(1, 2) @ added.flatten(2)  # (batch, state, heads * channels)
        return (C @ h).view_as(x) + D[:, None] * x


def _check(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor) -> None:
    if u.dim() != 4:
        raise ValueError(f"u has shape {tuple(u.shape)}; expected (batch, tokens, heads, channels)")
    *rows, heads, _ = u.shape
    state = B.shape[-1]
    for name, tensor, meaning, expected in (
        ("delta", delta, "(batch, tokens, heads)", (*rows, heads)),
        ("A", A, "(heads,)", (heads,)),
        ("B", B, "(batch, tokens, state)", (*rows, state)),
        ("C", C, "(batch, tokens, state)", (*rows, state)),
        ("D", D, "(heads,)", (heads,)),
        ("delta_bias", delta_bias, "(heads,)", (heads,)),
    ):
        if tensor.shape != expected:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; expected {meaning} = {expected}, as u is {tuple(u.shape)}"
            )
