"""Counts the operations of a forward pass on the meta device, which needs no memory and gives the same everywhere.

One convention, that of the tables in vision papers (VMamba's code, arXiv 2401.10166, with fvcore):

- matrix products and convolutions: a multiply-add is one;
- the selective scan: for each token and channel of each direction (9 states + 1), 9 per state by
  https://github.com/state-spaces/mamba/issues/110 and 1 for the skip connection D. Empty steps of an order count too.
  The product that makes step sizes from low-rank ones is counted with it. A wavefront scan counts as two directions;
- deformable sampling: 36 for each number, nine samples between four positions each;
- layer norms: 5 for each number;
- nothing for activations, gates, sums, pooling, other norms, and other interpolation.

Published figures of VMamba and MSVMamba follow this convention. EfficientVMamba's count the products alone. Vim's,
which others counted, lie between the two; how they count the scan is not known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

import vssm.ops  # noqa: F401  (registers the operators and what they cost)

# torch counts two for each multiply-add, of its own operators and ours; of norms it counts nothing.
SCANS = torch.ops.vssm.selective_scan, torch.ops.vssm.tree_scan, torch.ops.vssm.wavefront_scan
LAYER_NORM = torch.ops.aten.native_layer_norm


def _layer_norm(x: tuple[int, ...], *rest: object, **output: object) -> int:
    return 5 * math.prod(x)


@dataclass(frozen=True)
class Flops:
    """Operations of a forward pass, by kind; see the module for what counts.

    Args:
        products: of matrix products, convolutions and deformable sampling; a multiply-add counts as one.
        scan: of selective scans, along orders, trees and wavefronts.
        norms: of layer norms.
    """

    products: int
    scan: int
    norms: int

    @property
    def total(self) -> int:
        """The sum of all kinds."""
        return self.products + self.scan + self.norms


def count_flops(run: Callable[[], object]) -> Flops:
    """Count the operations of what a function runs.

    Args:
        run: called once, without gradients; use a model and inputs on the meta device.

    >>> import timm
    >>> import vssm
    >>> model = timm.create_model("vmamba_tiny", device="meta").eval()
    >>> flops = count_flops(lambda: model(torch.empty(1, 3, 224, 224, device="meta")))
    >>> round(flops.total / 1e9, 1)
    4.9
    """
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping={LAYER_NORM: _layer_norm}) as counter:
        run()
    counts = counter.get_flop_counts().get("Global", {})
    norms, scan = counts.pop(LAYER_NORM, 0), sum(counts.get(operator, 0) for operator in SCANS)
    return Flops(products=(sum(counts.values()) - scan) // 2, scan=scan // 2, norms=norms)
