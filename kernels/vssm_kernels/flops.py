"""What the operators cost, registered with torch: `torch.utils.flop_counter.FlopCounterMode` counts them as its own.

torch counts two for a multiply-add. Tables in papers count one, and 9 for each state and step of a selective scan, by
https://github.com/state-spaces/mamba/issues/110, and 1 for the skip connection D: these are counted twice here, so that
half of what torch counts is what stands in tables. A wavefront scan counts as two scans, from above and from the left.
Empty steps of an order count too, and the product that makes step sizes from low-rank ones. A backward costs twice its
forward, as that of a product does.
"""

from __future__ import annotations

import math

import torch
from torch.utils.flop_counter import register_flop_formula

from vssm_kernels import (  # noqa: F401  (define the operators)
    causal_conv1d,
    deformable_sampling,
    grid_tree,
    noncausal_ssd,
    selective_scan,
    ssd,
    state_fusion,
    tree_scan,
    wavefront_scan,
)

Shape = tuple[int, ...]


# torch hands a formula the shapes of an operator's arguments, and of its output by name.
@register_flop_formula(torch.ops.vssm.selective_scan)
def scan_flops(
    u: Shape,
    delta: Shape,
    A: Shape,
    B: Shape,
    C: Shape | None,
    D: Shape | None,
    delta_bias: Shape | None,
    delta_weight: Shape | None,
    states: Shape | None,
    order: Shape | None,
    *rest: object,
    **output: object,
) -> int:
    directions, channels, state = A
    steps = u[1] if order is None else order[1]
    product = 0 if delta_weight is None else u[0] * u[1] * math.prod(delta_weight)
    return 2 * (product + u[0] * steps * directions * channels * (9 * state + (D is not None)))


@register_flop_formula(torch.ops.vssm.causal_conv1d)
def conv_flops(x: Shape, weight: Shape, bias: Shape | None, order: Shape, *rest: object, **output: object) -> int:
    return 2 * x[0] * order[1] * math.prod(weight)


@register_flop_formula(torch.ops.vssm.noncausal_ssd)
def noncausal_flops(u: Shape, delta: Shape, A: Shape, B: Shape, *rest: object, **output: object) -> int:
    return 2 * (2 * math.prod(u) * B[-1])


@register_flop_formula(torch.ops.vssm.state_fusion)
def fusion_flops(states: Shape, weight: Shape, *rest: object, **output: object) -> int:
    return 2 * math.prod(states) * weight[0] * 9


@register_flop_formula(torch.ops.vssm.deformable_sampling)
def sampling_flops(x: Shape, *rest: object, **output: object) -> int:
    """Nine samples between four positions each."""
    return 2 * 9 * 4 * math.prod(x)


@register_flop_formula(torch.ops.vssm.wavefront_scan)
def wavefront_flops(
    u: Shape, delta: Shape, A: Shape, B: Shape, C: Shape, D: Shape | None, *rest: object, **output: object
) -> int:
    return 2 * math.prod(u) * (2 * 9 * A[-1] + (D is not None))


@register_flop_formula(torch.ops.vssm.ssd)
def ssd_flops(
    u: Shape,
    delta: Shape,
    A: Shape,
    B: Shape,
    C: Shape,
    D: Shape | None,
    delta_bias: Shape | None,
    initial: Shape | None,
    states: Shape | None,
    order: Shape | None,
    *rest: object,
    **output: object,
) -> int:
    """What is written to states and read from them: no more, into whatever chunks the steps are cut."""
    steps = u[1] if order is None else order[1]
    return 2 * u[0] * steps * math.prod(A) * u[-1] * (2 * B[-1] + (D is not None))


@register_flop_formula(torch.ops.vssm.grid_tree)
def grid_tree_flops(x: Shape, *rest: object, **output: object) -> int:
    """Of the cosines: every row times itself, the one below and the one to the right."""
    return 2 * 3 * math.prod(x)


@register_flop_formula(torch.ops.vssm.tree_scan)
def tree_scan_flops(u: Shape, *rest: object, **output: object) -> int:
    """As of a selective scan with one state."""
    return 2 * 9 * math.prod(u)


@register_flop_formula(torch.ops.vssm.selective_scan_backward)
def scan_backward_flops(gradient: Shape, *arguments: Shape | None, **output: object) -> int:
    return 2 * scan_flops(*arguments)


@register_flop_formula(torch.ops.vssm.causal_conv1d_backward)
def conv_backward_flops(gradient: Shape, *arguments: Shape | None, **output: object) -> int:
    return 2 * conv_flops(*arguments)


@register_flop_formula(torch.ops.vssm.noncausal_ssd_backward)
def noncausal_backward_flops(gradient: Shape, *arguments: Shape, **output: object) -> int:
    return 2 * noncausal_flops(*arguments)


@register_flop_formula(torch.ops.vssm.state_fusion_backward)
def fusion_backward_flops(gradient: Shape, *arguments: Shape, **output: object) -> int:
    return 2 * fusion_flops(*arguments)


@register_flop_formula(torch.ops.vssm.deformable_sampling_backward)
def sampling_backward_flops(gradient: Shape, *arguments: Shape, **output: object) -> int:
    return 2 * sampling_flops(*arguments)


@register_flop_formula(torch.ops.vssm.ssd_backward)
def ssd_backward_flops(gradient: Shape, *arguments: Shape | None, **output: object) -> int:
    return 2 * ssd_flops(*arguments)


@register_flop_formula(torch.ops.vssm.wavefront_scan_backward)
def wavefront_backward_flops(gradient: Shape, *arguments: Shape | None, **output: object) -> int:
    return 2 * wavefront_flops(*arguments)


@register_flop_formula(torch.ops.vssm.tree_scan_backward)
def tree_scan_backward_flops(gradient: Shape, *arguments: Shape, **output: object) -> int:
    return 2 * tree_scan_flops(*arguments)
