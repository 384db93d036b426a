"""Where a token lies: conditional, rotary and absolute positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module, resample_abs_pos_embed
from torch import Tensor

from vssm.nn.conv import ChannelsLastConv2d
from vssm.nn.order_table import concrete
from vssm.scan import place_of_class_token


class ConditionalPosition(ChannelsLastConv2d):
    """x + a 3 x 3 depthwise convolution of x, which tells positions apart at any size of map (CPVT, arXiv 2102.10882).

    Twice in each block of VSSD and Spatial-Mamba, before the norms; HRVMamba's small models too. A map (batch, height,
    width, dim) in and out.

    >>> ConditionalPosition(4)(torch.randn(2, 3, 5, 4)).shape
    torch.Size([2, 3, 5, 4])
    """

    def __init__(self, dim: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None):
        super().__init__(dim, dim, kernel_size=3, padding=1, groups=dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)

    def branch(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is added to x, without its bias, and this."""
        weight, bias = self.read(x)
        return self.product(x, weight, None), bias


@register_notrace_module  # reads shapes
class RotaryPosition(torch.nn.Module):
    """Rotate pairs of channels by angles that grow with the row and the column (RoPE, arXiv 2104.09864, in 2-D).

    The first half of the channels turns with the row, the second with the column; neighbouring channels are a pair, and
    pair i of the n in a half turns by position * base^(-i / n). Mamba2D rotates queries and keys, LocalVim the tokens
    in front of every block. Angles are float32. There are no parameters.

    Args:
        channels: of what is rotated, a multiple of 4.
        base: the longest wavelength is about 2 pi times this, in positions.
        grid: side of a grid whose cosines and sines are resized to any other map, by bicubic interpolation (LocalVim:
            14); if not given, those of the map itself are computed.

    >>> rotary = RotaryPosition(8)
    >>> queries = torch.randn(2, 3, 5, 4, 8)  # of 4 heads
    >>> rotary(queries).shape
    torch.Size([2, 3, 5, 4, 8])
    """

    def __init__(self, channels: int, base: float = 10000.0, grid: int | None = None):
        super().__init__()
        if channels % 4:
            raise ValueError(f"there are {channels} channels; expected a multiple of 4: pairs for rows and for columns")
        self.channels, self.base, self.grid = channels, base, grid

    def forward(self, x: Tensor, *grid: int) -> Tensor:
        """(batch, height, width, ..., channels) in and out; or (batch, tokens, channels) and the height and width."""
        y = x.unflatten(1, grid) if grid else x
        cos, sin = (
            table.view(*table.shape[:2], *[1] * (y.dim() - 4), -1)
            for table in self.tables(y.shape[1], y.shape[2], x.device)
        )
        even, odd = y.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).to(x.dtype).view_as(x)

    def tables(self, height: int, width: int, device: torch.device) -> Tensor:
        """Cosines and sines: (2, height, width, channels / 2)."""
        if self.grid is None:  # of any size in an exported program too
            angles = self.angles(height, width, device)
            return torch.stack([angles.cos(), angles.sin()])
        height, width = concrete(height), concrete(width)
        angles = self.angles(self.grid, self.grid, device)
        tables = torch.stack([angles.cos(), angles.sin()])
        if tables.shape[1:3] == (height, width):
            return tables
        return F.interpolate(tables.permute(0, 3, 1, 2), (height, width), mode="bicubic").permute(0, 2, 3, 1)

    def angles(self, height: int, width: int, device: torch.device) -> Tensor:
        """(height, width, channels / 2), in radians."""
        n = self.channels // 4
        speed = self.base ** (-torch.arange(n, device=device, dtype=torch.float32) / n)
        rows, columns = (torch.arange(side, device=device, dtype=torch.float32)[:, None] for side in (height, width))
        by_row, by_column = (rows * speed)[:, None], (columns * speed)[None]
        return torch.cat([by_row.expand(-1, width, -1), by_column.expand(height, -1, -1)], -1)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, base={self.base}, grid={self.grid}"


def resize_position(
    position: Tensor, old_grid: tuple[int, int], height: int, width: int, antialias: bool = True
) -> Tensor:
    """Resize an absolute position embedding to another grid, by bicubic interpolation.

    official (Vim): the first row is taken for the class token's, which shifts half of the positions by one. Here: the
    middle row, because that is where the class token sits; released weights are used as they are either way.

    Args:
        position: (1, tokens, channels), a row for each position of the grid, and one more where there is a class
            token, in the middle.
        old_grid: height and width of the grid it is for.
        height, width: of the new grid.
        antialias: smooth before the grid is made smaller; officially Vim does, LocalVim does not.

    Returns:
        (1, tokens of the new grid, channels); `position` itself where the grid is the same.

    Raises:
        ValueError: `position` has not as many rows as the old grid, with or without a class token.

    >>> resize_position(torch.randn(1, 6 * 5 + 1, 8), (6, 5), 12, 10).shape
    torch.Size([1, 121, 8])
    """
    return _resized(position, old_grid, height, width, antialias)


@torch.fx.wrap  # one node of a graph of torch.fx; holds for calls from this file only, so not for the public function
def _resized(position: Tensor, old_grid: tuple[int, int], height: int, width: int, antialias: bool) -> Tensor:
    how = {"num_prefix_tokens": 0, "antialias": antialias}
    height, width = concrete(height), concrete(width)  # interpolation has no gradient for torch.compile's symbols
    if (height, width) == tuple(old_grid):
        return position
    tokens = old_grid[0] * old_grid[1]
    if position.shape[1] not in (tokens, tokens + 1):
        raise ValueError(
            f"the position embedding has {position.shape[1]} rows; expected {tokens} for a grid of {old_grid[0]} x "
            f"{old_grid[1]}, or one more with a class token: pass the grid it was made for"
        )
    if position.shape[1] == tokens:
        return resample_abs_pos_embed(position, [height, width], list(old_grid), **how)
    class_row, patch_rows = split_class_row(position)
    return insert_class_row(resample_abs_pos_embed(patch_rows, [height, width], list(old_grid), **how), class_row)


def insert_class_row(rows: Tensor, class_row: Tensor) -> Tensor:
    """(batch, patches, channels) with (batch, 1, channels) in the middle: a class token, or its position.

    >>> insert_class_row(torch.tensor([[[1], [2], [3]]]), torch.tensor([[[0]]])).flatten().tolist()
    [1, 0, 2, 3]
    """
    place = place_of_class_token(rows.shape[1])
    return torch.cat([rows[:, :place], class_row, rows[:, place:]], dim=1)


def split_class_row(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The row in the middle, (batch, 1, channels), and the others: what `insert_class_row` was given.

    >>> class_row, rows = split_class_row(torch.tensor([[[1], [0], [2], [3]]]))
    >>> class_row.flatten().tolist(), rows.flatten().tolist()
    ([0], [1, 2, 3])
    """
    place = place_of_class_token(rows.shape[1] - 1)
    return rows[:, place : place + 1], torch.cat([rows[:, :place], rows[:, place + 1 :]], dim=1)
