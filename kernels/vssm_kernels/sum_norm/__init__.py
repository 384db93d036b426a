"""The sum over scan directions and the norm that follows it, or the norm alone: the public function and its op. And a
residual block's sum with the norm that follows."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from vssm_kernels.dispatch import forced, runs_eagerly
from vssm_kernels.gpu import why_no_triton
from vssm_kernels.kinds import Latest, kind_of
from vssm_kernels.op import Op, needs_gradient, without_autocast
from vssm_kernels.sum_norm import native_cpu, reference, triton_fused
from vssm_kernels.sum_norm.arguments import NormArguments


def _fused(args: NormArguments) -> bool:
    """Whether compilers make as good a kernel: of all but layer norms on a GPU.

    Of these inductor makes two passes over memory, where our kernel makes one: with plain layer norms, the kernels of
    `vmamba_tiny` took longer compiled than in eager mode. A root-mean-square norm it makes in one pass, and the
    addition before it too.
    """
    return not (args.center and args.x.is_cuda) or why_no_triton(*args.tensors()) is not None


OP = Op(
    "sum_norm",
    NormArguments,
    [native_cpu.BACKEND, triton_fused.BACKEND, reference.BACKEND],
    fused=_fused,
    saves_sums=True,
)


def sum_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None = None,
    *,
    eps: float,
    center: bool = True,
    dtype: torch.dtype | None = None,
    merge: bool = False,
    groups: int = 1,
) -> Tensor:
    """Layer norm or root-mean-square norm, with `merge` of the sum over directions.

    The sum is added up in float32 and rounded to x's dtype, as `selective_scan` does with merge; the norm is computed
    in float32 (float64 for float64 inputs) whatever the dtypes are.

    Args:
        x: (..., channels), or with merge (..., directions, channels).
        weight, bias: (channels,), of any float dtype, or None.
        eps: added to the variance, or to the mean square.
        center: subtract the mean (layer norm, arXiv 1607.06450), or not (RMS norm, arXiv 1910.07467).
        dtype: of the result; None is x's.
        merge: sum over the directions first.
        groups: equal parts of the channels, each of which is normed by itself.

    Returns:
        (..., channels).

    Raises:
        ValueError: shapes or devices that do not fit, or an eps that is not positive.
        TypeError: integers where floats belong.

    >>> import torch
    >>> directions = torch.tensor([[1.0, 2.0, 3.0], [0.0, 2.0, 4.0]])
    >>> sum_norm(directions, torch.ones(3), eps=1e-5, merge=True)
    tensor([-1.2247,  0.0000,  1.2247])
    """
    args = NormArguments(x, weight, bias, float(eps), center, x.dtype if dtype is None else dtype, merge, groups)
    if torch.compiler.is_compiling() and not OP.fused(args):
        OP.check(args)
        return OP(_for_inductor(args)).view(args.output_shape)
    return OP(args)


def add_norm(
    x: Tensor,
    branch: Tensor,
    weight: Tensor | None,
    bias: Tensor | None = None,
    *,
    eps: float,
    center: bool = True,
    dtype: torch.dtype | None = None,
    branch_bias: Tensor | None = None,
    kept: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """x + branch, and its norm: a residual block's sum, read and written once, and so are their gradients on a GPU.

    Elsewhere, and where a compiler, a mode or a transform of torch has to see it: two operations.

    Args:
        x: (batch, ..., channels).
        branch: of the same shape.
        weight, bias, eps, center, dtype: of the norm, as for `sum_norm`.
        branch_bias: (channels,), added to the branch first: that of the layer it comes from.
        kept: (batch, 1, ..., 1), 0 where a sample's branch is left out, 1 elsewhere (stochastic depth, arXiv
            1603.09382); None keeps all.
        scale: multiplies what `kept` keeps; without `kept` it changes nothing.

    Returns:
        The sum, in the wider dtype of the two, and its norm.

    >>> import torch
    >>> total, normed = add_norm(torch.zeros(2, 3), torch.tensor([[1.0, 2.0, 3.0]] * 2), torch.ones(3), eps=1e-5,
    ...     kept=torch.tensor([[0.0], [1.0]]))
    >>> total.tolist(), normed[0].tolist()
    ([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]], [0.0, 0.0, 0.0])
    """
    args = NormArguments(x, weight, bias, float(eps), center, x.dtype if dtype is None else dtype, False)
    if x.is_cuda and runs_eagerly():
        kind = kind_of((*args, branch, branch_bias, kept, scale))
        if kind is not None:
            kind = forced.get(), *kind
            plan = _additions.get(kind)
            if plan is None:
                plan = _additions[kind] = _Addition(args, branch, branch_bias, kept, scale)
            if plan.forward is not None:
                if needs_gradient((*args.tensors(), branch, branch_bias)):
                    return _AddNorm.apply(plan, args, x, branch, branch_bias, weight, bias, kept)
                return plan.forward(args, branch, branch_bias, kept)
    if branch_bias is not None:
        branch = branch + branch_bias
    total = x + (branch if kept is None else branch * (kept * scale))
    return total, sum_norm(total, weight, bias, eps=eps, center=center, dtype=args.dtype)


class _Addition:
    """How additions of one kind are run on a GPU; `forward` is None where they are not, in one kernel."""

    def __init__(
        self, args: NormArguments, branch: Tensor, branch_bias: Tensor | None, kept: Tensor | None, scale: float
    ):
        x = args.x
        self.scale, self.sample = scale, math.prod(x.shape[1:-1])
        self.dtype, self.bias_dtype = branch.dtype, None if branch_bias is None else branch_bias.dtype
        self.forward = None
        if (
            branch.shape == x.shape
            and x.numel() > 0
            and torch.promote_types(x.dtype, branch.dtype) == x.dtype
            and all(tensor is None or tensor.is_contiguous() for tensor in (x, branch, branch_bias, kept))
            and (branch_bias is None or branch_bias.shape == x.shape[-1:])
            and (kept is None or kept.numel() == len(x))
            and why_no_triton(x, branch, branch_bias, kept) is None
            and OP.choose(args) is triton_fused.BACKEND
        ):
            OP.check(args)
            self.forward = triton_fused.plan_add(args, self.sample, scale)
        self.backwards: dict[Hashable, Callable[..., tuple]] = {}

    def backward(
        self, args: NormArguments, dtotal: Tensor | None, dy: Tensor, kept: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """The gradients of x, branch, weight, bias and the branch's bias; `args` holds the sum in place of x."""
        given = dy = dy.resolve_neg().contiguous()
        if dtotal is not None:
            given = dtotal = dtotal.resolve_neg().contiguous()
        key = given.dtype, dy.dtype, dtotal is None, (given.data_ptr() | dy.data_ptr() | args.x.data_ptr()) & 15
        run = self.backwards.get(key)
        if run is None:
            run = triton_fused.plan_add_backward(args, self.dtype, self.bias_dtype, self.sample, self.scale)
            self.backwards[key] = run
        return run(args, dtotal, dy, kept)


_additions: dict[Hashable, _Addition] = Latest()


class _AddNorm(torch.autograd.Function):
    """`add_norm` in one kernel each way. It saves the sum, which the layers that follow save too."""

    @staticmethod
    def forward(ctx, plan, args, x, branch, branch_bias, weight, bias, kept):
        total, normed = plan.forward(args, branch, branch_bias, kept)
        ctx.plan, ctx.args = plan, args[3:]
        ctx.save_for_backward(total, weight, bias, kept)
        ctx.set_materialize_grads(False)
        return total, normed

    @staticmethod
    def backward(ctx, dtotal, dnormed):
        total, weight, bias, kept = ctx.saved_tensors
        args, plan = NormArguments(total, weight, bias, *ctx.args), ctx.plan
        given = [gradient for gradient in (dtotal, dnormed) if gradient is not None]
        if not torch.is_grad_enabled() and dnormed is not None and all(map(torch._C._has_storage, given)):
            dx, dbranch, dweight, dbias, dbranch_bias = plan.backward(args, dtotal, dnormed, kept)
        else:  # second derivatives, many gradients at once
            dx, dweight, dbias = (dtotal, None, None)
            if dnormed is not None:
                dx, dweight, dbias = without_autocast(total.device, OP.reference.backward, args, dnormed)
                dx = dx if dtotal is None else dx + dtotal
            dbranch = dx if kept is None else dx * (kept * plan.scale)
            dbranch_bias = None if plan.bias_dtype is None else dbranch.flatten(0, -2).sum(0).to(plan.bias_dtype)
            dbranch = dbranch.to(plan.dtype)
        return None, None, dx, dbranch, dbranch_bias, dweight, dbias, None


def _for_inductor(args: NormArguments) -> NormArguments:
    """The same norm of a view that inductor does not copy."""
    x, merge = args.x, args.directions > 1
    if needs_gradient(args.tensors()):
        # As rows: inductor takes four dimensions for (batch, channels, height, width), and copies what is saved for the
        # backward to its own idea of channels-last.
        x = x.reshape(-1, *x.shape[-2:]) if merge else x.reshape(-1, x.shape[-1])
    elif not merge:
        # As it is: of a sum that is not saved inductor writes out the view, and adds up the sum again for the next.
        x = x.reshape(args.output_shape)
    weight, bias = (None if tensor is None else tensor.contiguous() for tensor in (args.weight, args.bias))
    return args._replace(x=x, weight=weight, bias=bias, merge=merge)
