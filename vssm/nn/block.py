"""The residual block that families share; what differs between them, it takes as objects."""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.layers import DropPath, LayerScale
from torch import Tensor, nn

from vssm.nn.norm import BranchLayerNorm, BranchRMSNorm
from vssm.nn.reading import ReadTogether, runs_eagerly_on_gpu
from vssm.nn.recompute import has_hooks


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
        if torch.compiler.is_dynamo_compiling():
            return self._forward(x, *grid)
        if self._reads is None:
            self._reads = ReadTogether(self)
        return self._reads.run(self._forward, x, *grid)

    def _forward(self, x: Tensor, *grid: int) -> Tensor:
        if self.position is not None:
            x = self.position(x, *grid)
        branch = self.mixer(self.norm(x), *grid)
        if self._adds_in_norm2(x):
            x, normed = self.norm2.of_sum(x, branch, *self._kept(branch))
            return self._add(x, self.mlp(normed), None, None)
        x = self._add(x, branch, self.layer_scale, self.residual_scale)
        if self.mlp is None:
            return x
        if self.position2 is not None:
            x = self.position2(x, *grid)
        branch = self.norm2(self.mlp(x)) if self.post_norm else self.mlp(self.norm2(x))
        return self._add(x, branch, self.layer_scale2, self.residual_scale2)

    def _adds_in_norm2(self, x: Tensor) -> bool:
        """Whether one kernel adds the mixer's branch and norms the sum, with nothing between the two: on a GPU only."""
        return (
            runs_eagerly_on_gpu(x)
            and self.mlp is not None
            and type(self.norm2) in (BranchLayerNorm, BranchRMSNorm)
            and type(self.drop_path) is DropPath
            and self.layer_scale is None
            and self.residual_scale is None
            and self.position2 is None
            and not self.post_norm
            and not has_hooks(self.norm2)
            and not has_hooks(self.drop_path)
        )

    def _kept(self, branch: Tensor) -> tuple[Tensor | None, float]:
        """What DropPath multiplies a branch by: a random 0 or 1 for each sample, and a number."""
        keep = 1 - self.drop_path.drop_prob
        if keep == 1 or not self.drop_path.training:
            return None, 1.0
        kept = branch.new_empty((len(branch),) + (1,) * (branch.dim() - 1)).bernoulli_(keep)
        return kept, 1 / keep if keep > 0 and self.drop_path.scale_by_keep else 1.0

    def _add(
        self, x: Tensor, branch: Tensor, layer_scale: nn.Module | None, residual_scale: nn.Module | None
    ) -> Tensor:
        if layer_scale is not None:
            branch = layer_scale(branch)
        if residual_scale is not None:
            x = residual_scale(x)
        return x + (self.drop_path(branch) if self.training else branch)
