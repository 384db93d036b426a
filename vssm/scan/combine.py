"""Combine orders into new ones: the index arithmetic that families share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vssm.scan.order import OrderFunction, ScanOrder


def stack(*orders: ScanOrder) -> ScanOrder:
    """All directions of several orders side by side; shorter ones end in empty steps.

    >>> from vssm.scan import raster
    >>> stack(raster(1, 3), flipped(raster(1, 3))).table
    tensor([[0, 1, 2],
            [2, 1, 0]], dtype=torch.int32)
    """
    tokens = _tokens_of(orders, "stack")
    steps = max(order.steps for order in orders)
    tables = [torch.nn.functional.pad(order.table, (0, steps - order.steps), value=-1) for order in orders]
    return ScanOrder(torch.cat(tables), tokens)


def chain(*orders: ScanOrder) -> ScanOrder:
    """All directions one after another as a single one, so that the state is carried from each to the next.

    A token is visited once for every direction, and its outputs are summed.

    >>> from vssm.scan import raster
    >>> chain(raster(1, 3), flipped(raster(1, 3))).table
    tensor([[0, 1, 2, 2, 1, 0]], dtype=torch.int32)
    """
    return ScanOrder(torch.cat([order.table.flatten() for order in orders])[None], _tokens_of(orders, "chain"))


def flipped(order: ScanOrder) -> ScanOrder:
    """Every direction in reverse."""
    return ScanOrder(order.table.flip(1), order.tokens)


def insert_token(order: ScanOrder, position: int) -> ScanOrder:
    """Make room for one more token, such as a class token, at `position` of the token sequence.

    The new token has index `position`; tokens from there on move up by one. A direction that passes from one of its
    two neighbours in memory straight to the other meets it between them, whichever way it walks (beyond the ends of
    the sequence counts as a neighbour); any other direction meets it at step `position`.

    >>> from vssm.scan import bidirectional
    >>> insert_token(bidirectional(1, 3), 1).table
    tensor([[0, 1, 2, 3],
            [3, 2, 1, 0]], dtype=torch.int32)
    """
    if not 0 <= position <= order.tokens:
        raise ValueError(f"position is {position}; expected 0 to {order.tokens}, the number of tokens")
    outside = -2
    below = position - 1 if position > 0 else outside
    above = position + 1 if position < order.tokens else outside
    rows = []
    for row in order.table:
        moved = torch.where(row >= position, row + 1, row)
        path = torch.nn.functional.pad(moved, (1, 1), value=outside)
        here, there = path[:-1], path[1:]
        between = ((here == below) & (there == above)) | ((here == above) & (there == below))
        at = int(between.int().argmax()) if bool(between.any()) else position
        rows.append(torch.cat([moved[:at], moved.new_tensor([position]), moved[at:]]))
    return ScanOrder(torch.stack(rows), order.tokens + 1)


def pad_tokens(order: ScanOrder) -> ScanOrder:
    """Give every empty step a token of its own, behind all others: as many more as the emptiest direction needs.

    >>> pad_tokens(ScanOrder(torch.tensor([[0, -1, 1, -1], [1, 0, -1, -1]]), tokens=2)).table
    tensor([[0, 2, 1, 3],
            [1, 0, 2, 3]], dtype=torch.int32)
    """
    empty = order.table < 0
    number = empty.cumsum(1)
    return ScanOrder(torch.where(empty, order.tokens + number - 1, order.table), order.tokens + int(number.max()))


@dataclass(frozen=True)
class _Changed:
    """An order function whose orders are changed; equal to any other with the same change."""

    change: Callable[[ScanOrder], ScanOrder]
    order: OrderFunction

    def __call__(self, height: int, width: int) -> ScanOrder:
        return self.change(self.order(height, width))


def backwards(order: OrderFunction) -> OrderFunction:
    """The order with every direction in reverse (LocalMamba; every second layer of LBMamba, arXiv 2506.15976).

    >>> from vssm.scan import raster
    >>> backwards(raster)(1, 3).table
    tensor([[2, 1, 0]], dtype=torch.int32)
    """
    return _Changed(flipped, order)


def with_padding_tokens(order: OrderFunction) -> OrderFunction:
    """The order with a token for every empty step, for a mixer that computes something there (LocalVim's convolution).

    >>> from vssm.scan import local
    >>> with_padding_tokens(local(2))(2, 3).table
    tensor([[0, 1, 3, 4, 2, 6, 5, 7]], dtype=torch.int32)
    """
    return _Changed(pad_tokens, order)


@dataclass(frozen=True)
class _WithClassToken:
    """An order function with a class token in the middle; equal to any other of the same order."""

    order: OrderFunction

    def __call__(self, height: int, width: int) -> ScanOrder:
        return insert_token(self.order(height, width), place_of_class_token(height * width))


def place_of_class_token(patches: int) -> int:
    """How many of the patches come before a class token in the middle of them (Vim, arXiv 2401.09417).

    >>> place_of_class_token(5)
    2
    """
    return patches // 2


def with_class_token(order: OrderFunction) -> OrderFunction:
    """The order of patches with a class token met in the middle of the sequence (Vim, arXiv 2401.09417).

    >>> from vssm.scan import raster
    >>> with_class_token(raster)(1, 4).table
    tensor([[0, 1, 2, 3, 4]], dtype=torch.int32)
    """
    return _WithClassToken(order)


def _tokens_of(orders: tuple[ScanOrder, ...], purpose: str) -> int:
    tokens = {order.tokens for order in orders}
    if len(tokens) != 1:
        raise ValueError(f"orders to {purpose} must walk the same tokens; these walk {sorted(tokens)} tokens")
    return tokens.pop()
