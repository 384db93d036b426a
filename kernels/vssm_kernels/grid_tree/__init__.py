"""The minimum spanning tree of a map: the public function and its op."""

from __future__ import annotations

from torch import Tensor

from vssm_kernels.grid_tree import native_cpu, reference, triton_fused
from vssm_kernels.grid_tree.arguments import MapArguments
from vssm_kernels.op import Op

OP = Op(
    "grid_tree",
    MapArguments,
    [native_cpu.BACKEND, triton_fused.BACKEND, reference.BACKEND],
    standard=reference.standard_tree,
)


def grid_tree(x: Tensor) -> Tensor:
    """The minimum spanning tree of every map, whose neighbours are joined where they are most alike.

    Each position of a map is joined with the four beside it by edges of weight exp(-cosine), in float32. Of equal edges
    those downwards come before those to the right, and then those nearer to the beginning of the map. The root is the
    first position. No gradient passes through a tree.

    A tree is a table, like a scan order: its vertices in an order in which parents come first, and each one's parent.
    It goes level by level, each in the order of its parents, and children clockwise from the side that their parent
    lies on, so that the children of a vertex stand side by side.

    Args:
        x: (batch, height, width, channels).

    Returns:
        (batch, 4, height * width) int32. For each step: the vertex that is visited, as an index in raster order; its
        parent, -1 for the root; the step before which its children end, and those of the vertices before it; the step
        at which its level begins.

    Raises:
        ValueError: anything but maps with at least one position.
        TypeError: integers where floats belong.

    Source: MambaTree, formerly GrootVL, arXiv 2406.02395.

    >>> import torch
    >>> corner = torch.tensor([[[[1.0, 0.0], [0.9, 0.4]], [[0.0, 1.0], [0.4, 0.9]]]])
    >>> grid_tree(corner)[0, :2]
    tensor([[ 0,  1,  3,  2],
            [-1,  0,  1,  3]], dtype=torch.int32)
    """
    return OP(MapArguments(x.detach()))
