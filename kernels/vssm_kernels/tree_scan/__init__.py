"""The scan of a tree: the public function and its op."""

from __future__ import annotations

from torch import Tensor

from vssm_kernels.op import Op
from vssm_kernels.tree_scan import native_cpu, reference, standard, triton_fused
from vssm_kernels.tree_scan.arguments import TreeScanArguments

OP = Op(
    "tree_scan",
    TreeScanArguments,
    [native_cpu.BACKEND, triton_fused.BACKEND, reference.BACKEND],
    standard=standard.scan,
)


def tree_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, delta_bias: Tensor, tree: Tensor) -> Tensor:
    """States of a tree: every vertex adds to all others, less the longer the path is (MambaTree, arXiv 2406.02395).

    With the step size delta' = softplus(delta + delta_bias), vertex v has the state

        h[v] = sum over all vertices s of delta'[s] B[s] u[s] times exp(delta'[c] A) for every edge between s and v

    where c is the lower end of the edge, the child. That takes two sweeps, from the leaves to the root and back:

        sums[v] = delta'[v] B[v] u[v] + sum over the children c of exp(delta'[c] A) sums[c]
        h[c] = sums[c] + exp(delta'[c] A) (h[parent] - exp(delta'[c] A) sums[c]);    h[root] = sums[root]

    It is a selective scan with one state where the tree is a chain, that reads in both directions. Arithmetic and
    states are float32 (float64 for float64 inputs) whatever the activations are, and so is the backward.

    Args:
        u: (batch, tokens, channels).
        delta: (batch, tokens, channels), step size before bias and softplus.
        A: (channels,), negative.
        B: (batch, tokens), the same for all channels.
        delta_bias: (channels,), added to delta.
        tree: (batch, 4, tokens) int32, as `grid_tree` makes it.

    Returns:
        (batch, tokens, channels) in float32 at least, in the order of u.

    Raises:
        ValueError: shapes or devices that do not fit.
        TypeError: integers where floats belong, or a tree that is not int32.

    >>> import torch
    >>> from vssm_kernels import grid_tree
    >>> tree = grid_tree(torch.randn(2, 3, 5, 8))
    >>> u, delta, B = torch.randn(2, 15, 8), torch.randn(2, 15, 8), torch.randn(2, 15)
    >>> tree_scan(u, delta, -torch.ones(8), B, torch.zeros(8), tree).shape
    torch.Size([2, 15, 8])
    """
    return OP(TreeScanArguments(u, delta, A, B, delta_bias, tree))
