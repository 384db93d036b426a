"""The selective scan as loops of ONNX, each a Scan over a few operations on numbers that stay in the cache.

An operation on all steps at once waits for the memory. So step sizes, decays and inputs are made in one loop, over
blocks of as many steps as a core's cache holds, and the steps are walked in a second one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.selective_scan.arguments import ScanArguments
from vssm_kernels.standard import scattered, softplus_for_onnx, steps_of, visits

_BLOCK = 2**15  # numbers of an activation in a block: 128 KB
_WHOLE = 2**20  # so few in all are one block


def scan(args: ScanArguments) -> Tensor:
    """(batch, tokens, directions, channels), or states, in float32 at least."""
    walk = _Walk(args)
    first, second = walk.prepared()
    C = [] if args.C is None else [walk.taken(args.C)]
    kept = [] if walk.kept is None else [walk.kept]
    shape = args.directions, args.batch, args.channels
    if args.state == 1:

        def step(state: Tensor, row: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            state = row[0] * state + row[1]
            return state, [state.clone()]

        rows = [first * kept[0] if kept else first, second]
        (y,) = _loop(step, first.new_zeros(shape), rows)
        y = y * C[0] if C else y.unsqueeze(-1)
    else:

        def step(state: Tensor, row: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            decay = torch.exp(row[0] * walk.A)
            decay = decay * row[3] if kept else decay
            state = decay * state + row[1] * row[2]
            return state, [row[-1] @ state if C else state.clone()]

        rows = [first.unsqueeze(-2), second.unsqueeze(-2), walk.taken(args.B).unsqueeze(-1)]
        rows += [each.unsqueeze(-1) for each in kept] + [each.unsqueeze(-2) for each in C]
        (y,) = _loop(step, first.new_zeros(*shape[:2], args.state, shape[2]), rows)
        y = y.squeeze(-2) if C else y.transpose(-1, -2)
    return walk.back(y)


def _loop(step: Callable[..., tuple[Tensor, list[Tensor]]], state: Tensor, rows: list[Tensor]) -> list[Tensor]:
    """What the steps put out, one behind the other: step(state, row) -> state, outputs. It becomes an ONNX Scan."""
    from torch._higher_order_ops.scan import scan as loop  # here: it takes a second to import

    # An export would take every size within the loop for an unknown one, 1 among them, so that nothing is broadcast.
    with torch._dynamo.config.patch(assume_static_by_default=True):
        return loop(step, state, rows)[1]


class _Walk:
    """Inputs in the order of each direction's steps, (steps, directions, batch, features), made of rows of memory.

    The batch is the innermost dimension of them all, so that a gather is all that has to be done, both ways.
    """

    def __init__(self, args: ScanArguments):
        present = [tensor for tensor in args.tensors() if tensor is not None]
        self.wide = torch.float64 if any(tensor.dtype == torch.float64 for tensor in present) else torch.float32
        self.args, numbers = args, args.directions * args.channels
        self.blocks = 1 if args.steps * numbers <= _WHOLE else -(-args.steps // max(1, _BLOCK // numbers))
        padding = -args.steps % self.blocks
        token = visits(args.order, args.steps, args.directions, args.device)
        self.token = F.pad(token, (0, 0, 0, padding), value=-1)
        self.once = args.order is None or args.order.writes_each_row_once
        self.empty = padding > 0 or not (self.once and args.steps == args.tokens)
        self.image = torch.arange(args.batch, device=args.device)
        self.direction = torch.arange(args.directions, device=args.device)
        self.A = self._widened(args.A).transpose(1, 2).contiguous().unsqueeze(1)
        steps = torch.arange(len(self.token), device=args.device)
        # 0 where the state starts anew, else 1.
        self.kept = (steps % args.segment != 0).to(self.wide)[:, None, None, None] if args.segment else None

    def prepared(self) -> tuple[Tensor, Tensor]:
        """The step sizes, and these times the inputs; with one state the decays, and what is added to the state."""
        args = self.args
        u, delta, B = (self._rows(each) for each in (args.u, args.delta, args.B))
        weight, bias = (None if each is None else self._widened(each) for each in (args.delta_weight, args.delta_bias))
        if weight is not None and bias is not None:  # a feature that is always 1
            weight = torch.cat([weight, bias.unsqueeze(-1)], -1)
            delta, bias = F.pad(delta, (0, 1), value=1.0), None

        def make(places: list[Tensor]) -> list[Tensor]:
            if weight is None:
                step = _read(delta, places[1])
            else:
                rows = _read(delta, places[1].transpose(0, 1))  # (directions, steps, batch, rank)
                rows = (rows.flatten(1, 2) @ weight.transpose(1, 2)).unflatten(1, rows.shape[1:3])
                step = rows.transpose(0, 1).contiguous()
            step = softplus_for_onnx(step if bias is None else step + bias.unsqueeze(1))
            added = step * _read(u, places[0])
            if args.state > 1:
                return [step, added]
            return [torch.exp(step * self.A.squeeze(2)), added * _read(B, places[2])]

        places = [self._places(each) for each in (args.u, args.delta, args.B)]
        if self.blocks == 1:
            return make(places)
        blocks = [each.unflatten(0, (self.blocks, -1)) for each in places]
        found = _loop(lambda state, row: (state.clone(), make(row)), u.new_zeros(1), blocks)
        return tuple(each.flatten(0, 1) for each in found)

    def taken(self, values: Tensor) -> Tensor:
        return _read(self._rows(values), self._places(values))

    def back(self, y: Tensor) -> Tensor:
        """The way back, and D times the inputs."""
        args, inner = self.args, y.shape[3:]
        D = None if args.D is None else self._widened(args.D)
        if self.once:
            step = steps_of(args.order, args.tokens, args.directions, args.device)
            place = (step * args.directions + self.direction) * args.batch + self.image[:, None, None]
            y = _read(y.flatten(0, 2).flatten(1), place).unflatten(3, inner)
            u = self._widened(args.u)
            return y if D is None else y + D * (u.unsqueeze(2) if args.shared_input else u)
        if D is not None:  # as often as a token is visited
            y = y + D.unsqueeze(1) * self.taken(args.u)
        y = y[: args.steps].flatten(3).permute(2, 0, 1, 3)
        return scattered(y, args.order, args.tokens).unflatten(3, inner)

    def _widened(self, tensor: Tensor) -> Tensor:
        """Detached: no gradient is asked for, and torch would make a graph of the loop's."""
        return tensor.detach().to(self.wide)

    def _rows(self, values: Tensor) -> Tensor:
        """(batch, tokens[, directions], features) as rows, behind them one of zeros if there are empty steps."""
        rows = self._widened(values).flatten(0, values.dim() - 2)
        return F.pad(rows, (0, 0, 0, 1)) if self.empty else rows

    def _places(self, values: Tensor) -> Tensor:
        """Of the rows that are read, (steps, directions, batch)."""
        token, per_direction = self.token.unsqueeze(-1), values.dim() == 4
        place = self.image * self.args.tokens + token
        place = place * self.args.directions + self.direction[:, None] if per_direction else place
        return torch.where(token < 0, values.shape[:-1].numel(), place) if self.empty else place


def _read(rows: Tensor, place: Tensor) -> Tensor:
    """(*place, features): one Gather of ONNX, where an index would be a GatherND."""
    return F.embedding(place, rows)
