"""The residual block that families share; what differs between them, it takes as objects."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import torch
from timm.layers import DropPath, LayerScale
from torch import Tensor, nn

from vssm.nn.norm import BranchLayerNorm, BranchRMSNorm
from vssm.nn.position import ConditionalPosition
from vssm.nn.reading import ReadTogether, has_hooks, runs_eagerly_on_gpu

_Addend = dict[str, Any]  # the branch, and what it is multiplied by: arguments of `add_norm`


def drop_path_rates(last: float, blocks: int) -> list[float]:
    """The rate of stochastic depth of each block, rising linearly from 0 to that of the last.

    >>> drop_path_rates(0.5, 3)
    [0.0, 0.25, 0.5]
    """
    return torch.linspace(0, last, blocks, device="cpu").tolist()  # not on the device that models are built on


class Block(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm2(x)) where there is an MLP; each branch with stochastic depth.

    | family | what it passes |
    |---|---|
    | VMamba, GrootVL | a mixer, an MLP |
    | VMamba's first version, Res-VMamba, MHS-VM | a mixer |
    | Vim, LBMamba | a mixer of tokens, norm=BranchRMSNorm |
    | LocalVim | the same, position=RotaryPosition |
    | MSVMamba, version 3 | post_norm |
    | VSSD, Spatial-Mamba, HRVMamba | position, position2 |
    | GroupMamba | norm=nn.Identity, norm2 |
    | MambaVision, large sizes | layer_scale=1e-5 |
    | Mamba2D | residual_scale |

    Args:
        dim: channels.
        mixer: mixes positions; any module from a map to a map of the same shape, or from tokens, height and width to
            tokens.
        mlp: mixes channels; none if not given.
        drop_path: rate of stochastic depth, of both branches.
        norm: makes the norm in front of the mixer from the number of channels.
        norm2: makes that of the MLP; `norm` if not given.
        post_norm: the MLP's norm comes after it, x + norm2(mlp(x)); the mixer's stays in front.
        position, position2: change x before the mixer's norm and before the MLP's, as ConditionalPosition does.
        layer_scale: multiply each branch by a learned number per channel, which starts at this value.
        residual_scale: multiply x by a learned number per channel, which starts at 1, where a branch is added to it.

    >>> block = Block(8, mixer=nn.Linear(8, 8), mlp=nn.Linear(8, 8))
    >>> block(torch.randn(2, 3, 5, 8)).shape
    torch.Size([2, 3, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        mlp: nn.Module | None = None,
        drop_path: float = 0.0,
        norm: Callable[..., nn.Module] = BranchLayerNorm,
        norm2: Callable[..., nn.Module] | None = None,
        post_norm: bool = False,
        position: nn.Module | None = None,
        position2: nn.Module | None = None,
        layer_scale: float | None = None,
        residual_scale: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}

        def scale(start: float | None) -> nn.Module | None:
            return None if start is None else LayerScale(dim, start, **dd)

        self.position = position
        self.norm = norm(dim, **dd)
        self.mixer = mixer
        self.layer_scale = scale(layer_scale)
        self.residual_scale = scale(1.0 if residual_scale else None)
        self.drop_path = DropPath(drop_path)
        if mlp is not None:
            self.position2 = position2
            self.norm2 = (norm2 or norm)(dim, **dd)
            self.post_norm = post_norm
            self.layer_scale2 = scale(layer_scale)
            self.residual_scale2 = scale(1.0 if residual_scale else None)
        self.mlp = mlp
        self._reads: ReadTogether | None = None

    def forward(self, x: Tensor, *grid: int) -> Tensor:
        """(batch, height, width, dim) in and out; or (batch, tokens, dim) and the height and width of the grid."""
        return self.add_last(*self.run(x, None, *grid))

    def branch(self, x: Tensor, *grid: int) -> Tensor:
        """What the mixer's branch adds to x, without stochastic depth."""
        return self.mixer(self.norm(x), *grid)

    def run(self, x: Tensor, before: _Addend | None, *grid: int) -> tuple[Tensor, Tensor]:
        """All but the last sum: x and the branch that is still to be added to it, as `before` is to the x that came."""
        if torch.compiler.is_dynamo_compiling():
            return self._run(x, before, *grid)
        if self._reads is None:
            self._reads = ReadTogether(self)
        return self._reads.run(self._run, x, before, *grid)

    def _run(self, x: Tensor, before: _Addend | None, *grid: int) -> tuple[Tensor, Tensor]:
        if before is not None:
            x, normed = self.norm.of_sum(x, **before)
        else:
            x, normed = _normed(x, self.position, self.norm, *grid)
        branch = self.mixer(normed, *grid)
        if self.mlp is None:
            return x, branch
        if self._adds_in_norm2(x):
            x, normed = self.norm2.of_sum(x, **self.addend(branch))
            return x, self.mlp(normed)
        x = self._add(x, branch, self.layer_scale, self.residual_scale)
        if not self.post_norm:
            x, normed = _normed(x, self.position2, self.norm2, *grid)
            return x, self.mlp(normed)
        if self.position2 is not None:
            x = self.position2(x, *grid)
        return x, self.norm2(self.mlp(x))

    def add_last(self, x: Tensor, branch: Tensor) -> Tensor:
        """The sum that the block ends in."""
        if self.mlp is None:
            return self._add(x, branch, self.layer_scale, self.residual_scale)
        return self._add(x, branch, self.layer_scale2, self.residual_scale2)

    def _adds_in_norm2(self, x: Tensor) -> bool:
        """Whether one kernel adds the mixer's branch and norms the sum, with nothing between the two: on a GPU only."""
        return (
            runs_eagerly_on_gpu(x)
            and self.mlp is not None
            and self.position2 is None
            and not self.post_norm
            and self.adds_in(self.norm2)
        )

    def adds_in(self, norm: nn.Module) -> bool:
        """Whether a norm's kernel can add this block's branch to x: nothing but stochastic depth changes the branch,
        nothing changes x, and no hooks have to be called."""
        return (
            _makes_sums(norm)
            and type(self.drop_path) is DropPath
            and self.layer_scale is None
            and self.residual_scale is None
            and not has_hooks(self.drop_path)
        )

    def addend(self, branch: Tensor) -> _Addend:
        """A branch, and what DropPath multiplies it by: a random 0 or 1 for each sample, and a number."""
        keep = 1 - self.drop_path.drop_prob
        if keep == 1 or not self.drop_path.training:
            return {"branch": branch}
        kept = branch.new_empty((len(branch),) + (1,) * (branch.dim() - 1)).bernoulli_(keep)
        scale = 1 / keep if keep > 0 and self.drop_path.scale_by_keep else 1.0
        return {"branch": branch, "kept": kept, "scale": scale}

    def _add(
        self, x: Tensor, branch: Tensor, layer_scale: nn.Module | None, residual_scale: nn.Module | None
    ) -> Tensor:
        if layer_scale is not None:
            branch = layer_scale(branch)
        if residual_scale is not None:
            x = residual_scale(x)
        return x + self.drop_path(branch)


def _makes_sums(norm: nn.Module) -> bool:
    """Whether a norm's kernel can also make the sum that it norms: the norm is one of ours, and has no hooks."""
    return type(norm) in (BranchLayerNorm, BranchRMSNorm) and not has_hooks(norm)


def _normed(x: Tensor, position: nn.Module | None, norm: nn.Module, *grid: int) -> tuple[Tensor, Tensor]:
    """x with its position added, and the norm of this sum; in one kernel where neither module has hooks."""
    if position is None:
        return x, norm(x)
    if (
        runs_eagerly_on_gpu(x)
        and type(position) is ConditionalPosition
        and not has_hooks(position)
        and _makes_sums(norm)
    ):
        branch, bias = position.branch(x)
        return norm.of_sum(x, branch, branch_bias=bias)
    x = position(x, *grid)
    return x, norm(x)


class Blocks(nn.Sequential):
    """Blocks one after another, each given the height and width of the grid as well, where there is one.

    Run eagerly on a GPU, the kernel of a block's norm makes the sum that the block before it ends in.

    >>> Blocks(Block(8, nn.Linear(8, 8)), Block(8, nn.Linear(8, 8)))(torch.randn(2, 3, 5, 8)).shape
    torch.Size([2, 3, 5, 8])
    """

    def forward(self, x: Tensor, *grid: int) -> Tensor:
        """As of a block."""
        eagerly = runs_eagerly_on_gpu(x)
        before = None
        blocks = list(self)
        for block, following in zip_longest(blocks, blocks[1:]):
            joined = eagerly and _joined(block, following)
            if before is None and not joined:
                x = block(x, *grid)
                continue
            x, branch = block.run(x, before, *grid)
            x, before = (x, block.addend(branch)) if joined else (block.add_last(x, branch), None)
        return x


def _joined(block: nn.Module, following: nn.Module | None) -> bool:
    """Whether the next block's norm can make the sum that a block ends in."""
    return (
        type(block) is Block
        and type(following) is Block
        and following.position is None
        and block.adds_in(following.norm)
        and not has_hooks(block)
        and not has_hooks(following)
    )
