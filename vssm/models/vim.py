"""Vim: Vision Mamba, efficient visual representation learning with bidirectional state space model.

Paper: arXiv 2401.09417. Official code and weights: https://github.com/hustvl/Vim at
dd0358ad1e42701f22afbefa0717cc8825cf9f45, Apache-2.0.

A sequence of patches with a class token in its middle; every block scans it forwards and backwards, each direction
with its own causal convolution and state-space parameters, and adds to a residual stream kept in float32.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.layers import (
    DropPath,
    lecun_normal_,
    register_notrace_function,
    register_notrace_module,
    resample_abs_pos_embed,
    to_2tuple,
)
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from vssm.models._base import build, quarters
from vssm.models._cfg import imagenet_cfg
from vssm.models._plain import Plain
from vssm.nn import BranchRMSNorm, OrderTable, PatchStem, SelectiveScan, concrete, recomputed
from vssm.ops import causal_conv1d, sum_gate
from vssm.scan import OrderFunction, ScanOrder, bidirectional, insert_token


def with_class_token(scan_order: OrderFunction, height: int, width: int) -> ScanOrder:
    """The order of the patches with the class token met in the middle of the sequence."""
    return insert_token(scan_order(height, width), height * width // 2)


@register_notrace_module
class VimMixer(nn.Module):
    """Projection to input and gate, causal convolution and scan in every direction, mean, projection back.

    Args:
        dim: channels of the tokens; twice as many inside.
        state: size of the state-space model's state.
        conv_width: taps of the causal convolution.
        scan_order: of the patches; the class token is put in its middle.
    """

    def __init__(
        self,
        dim: int,
        state: int = 16,
        conv_width: int = 4,
        scan_order: OrderFunction = bidirectional,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        inner = 2 * dim
        self.directions = scan_order(2, 2).directions
        self.order_table = OrderTable(with_class_token, scan_order)
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False, **dd)
        self.conv_weight = nn.Parameter(torch.empty(self.directions, inner, conv_width, **dd))
        self.conv_bias = nn.Parameter(torch.empty(self.directions, inner, **dd))
        self.scan = SelectiveScan(inner, self.directions, state, rank=math.ceil(dim / 16), **dd)
        self.out_proj = nn.Linear(inner, dim, bias=False, **dd)
        for parameter in (self.conv_weight, self.conv_bias):
            nn.init.uniform_(parameter, -(conv_width**-0.5), conv_width**-0.5)
        # official: only the forward direction's step-size bias gets Mamba's initialisation; the others start at zero.
        nn.init.zeros_(self.scan.dt_bias[1:].detach())

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """(batch, height * width + 1, dim), both ways."""
        order = self.order_table(height, width, tokens.device)
        x, z = self.in_proj(tokens).chunk(2, dim=-1)
        x = causal_conv1d(x, self.conv_weight, self.conv_bias, order, silu=True)
        if not torch.is_grad_enabled():
            return self.out_proj(self.scan(x, order, z, scale=1 / self.directions))
        # Of the gate, the sum is kept, and z, which is half of what in_proj made; not the gated sum.
        total = self.scan(x, order, merge=True)
        return recomputed(lambda *kept: self.out_proj(self.gate(*kept)), total, z)

    def gate(self, total: Tensor, z: Tensor) -> Tensor:
        """The mean over the directions, gated; (batch, tokens, channels) all."""
        return sum_gate(total.unsqueeze(2), z, 1 / self.directions)


class VimBlock(nn.Module):
    """stream + mixer(norm(stream)); the stream is float32 whatever the model is.

    official: "add, norm, mixer" with hidden state and residual apart; here: the sum of both, as elsewhere, because it
    is the same. The official drop path of a block's incoming hidden state is that of our previous block's output.
    """

    def __init__(self, norm: nn.Module, mixer: nn.Module, drop_path: float = 0.0):
        super().__init__()
        self.norm = norm
        self.mixer = mixer
        self.drop_path = DropPath(drop_path)

    def forward(self, stream: Tensor, height: int, width: int) -> Tensor:
        return stream + self.drop_path(self.mixer(self.norm(stream), height, width))


class Vim(Plain):
    """Vision Mamba.

    Args:
        img_size: pixels, one number or (height, width), of the images that the position embedding is stored for; any
            other size is resized to in `forward`.
        patch_size, stride: pixels; the "+" models overlap their patches.
        embed_dim, depth, state: size of the model.
        scan_order: of the patches, a function (height, width) -> ScanOrder.
        drop_rate, drop_path_rate: dropout before the classifier; stochastic depth, rising linearly to this rate.
        in_chans, num_classes, global_pool, device, dtype: as everywhere in timm.

    >>> model = Vim(embed_dim=32, depth=2, num_classes=10)
    >>> model(torch.randn(1, 3, 96, 130)).shape
    torch.Size([1, 10])
    """

    first_conv = f"patch_embed.{PatchStem.first_conv}"

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        stride: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 192,
        depth: int = 24,
        state: int = 16,
        scan_order: OrderFunction = bidirectional,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(embed_dim, stride, depth, in_chans, num_classes, global_pool, drop_rate, **dd)
        self.patch_embed = PatchStem(in_chans, embed_dim, patch_size, stride, **dd)
        self.grid = self.patch_embed.grid(*to_2tuple(img_size))
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim, **dd))
        self.pos_embed = nn.Parameter(torch.empty(1, self.grid[0] * self.grid[1] + 1, embed_dim, **dd))
        rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        self.blocks = nn.Sequential(
            *(
                VimBlock(
                    BranchRMSNorm(embed_dim, **dd),
                    VimMixer(embed_dim, state, scan_order=scan_order, **dd),
                    drop_path=rate,
                )
                for rate in rates
            )
        )
        self.norm = BranchRMSNorm(embed_dim, **dd)
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        """The official initialisation, beyond what the modules start with.

        official: trunc_normal_ cut at +-2; here: normal_, because a cut 100 deviations away cuts nothing, while in
        float32 one draw in 2^24 comes out of trunc_normal_ as -2 itself.
        """
        nn.init.normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=0.02)
        lecun_normal_(self.patch_embed.proj.weight)
        nn.init.zeros_(self.patch_embed.proj.bias)
        for block in self.blocks:
            block.mixer.out_proj.weight.div_(math.sqrt(len(self.blocks)))
        if self.num_classes > 0:
            nn.init.normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def embed(self, image: Tensor) -> tuple[Tensor, int, int]:
        patches = self.patch_embed(image)
        batch, height, width, _ = patches.shape
        patches = patches.flatten(1, 2)
        middle = height * width // 2
        class_token = self.cls_token.expand(batch, -1, -1)
        tokens = torch.cat([patches[:, :middle], class_token, patches[:, middle:]], dim=1)
        tokens = tokens + resize_position(self.pos_embed, self.grid, height, width)
        return tokens.to(torch.promote_types(self.pos_embed.dtype, torch.float32)), height, width

    def class_token(self, tokens: Tensor) -> Tensor:
        return tokens[:, (tokens.shape[1] - 1) // 2]

    def patch_tokens(self, tokens: Tensor) -> Tensor:
        middle = (tokens.shape[1] - 1) // 2
        return torch.cat([tokens[:, :middle], tokens[:, middle + 1 :]], dim=1)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Store the position embedding for another image size, in pixels, for instance before fine-tuning at it."""
        grid = self.patch_embed.grid(*to_2tuple(img_size))
        resized = resize_position(self.pos_embed.detach(), self.grid, *grid)
        self.pos_embed = nn.Parameter(resized.clone(), requires_grad=self.pos_embed.requires_grad)
        self.grid = grid

    def no_weight_decay(self) -> set[str]:
        # official: one-dimensional tensors, biases, and the two embeddings. Our stacked biases and D are
        # two-dimensional, so they are named. A_log is decayed: the official flag on it is read by no optimiser.
        return {"cls_token", "pos_embed"} | self.parameters_ending("conv_bias", "dt_bias", "D")

    def convert_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return checkpoint_filter_fn(state, self)


@torch.fx.wrap
@register_notrace_function
def resize_position(position: Tensor, old_grid: tuple[int, int], height: int, width: int) -> Tensor:
    """A position embedding (1, tokens + 1, channels) for another grid; the class token's row is the middle one.

    official: the first row is taken for the class token's, which shifts half of the positions by one. Here: the middle
    row, because that is where the class token sits; released weights are used as they are either way.
    """
    height, width = concrete(height), concrete(width)  # interpolation has no gradient for torch.compile's symbols
    if (height, width) == tuple(old_grid):
        return position
    old_middle, middle = old_grid[0] * old_grid[1] // 2, height * width // 2
    class_row = position[:, old_middle : old_middle + 1]
    patch_rows = torch.cat([position[:, :old_middle], position[:, old_middle + 1 :]], dim=1)
    patch_rows = resample_abs_pos_embed(patch_rows, [height, width], list(old_grid), num_prefix_tokens=0)
    return torch.cat([patch_rows[:, :middle], class_row, patch_rows[:, middle:]], dim=1)


# Official names of a block's tensors, one per direction -> ours, stacked over the directions.
_STACKED = {
    ("A_log", "A_b_log"): "scan.A_log",
    ("D", "D_b"): "scan.D",
    ("x_proj.weight", "x_proj_b.weight"): "scan.x_proj",
    ("dt_proj.weight", "dt_proj_b.weight"): "scan.dt_proj",
    ("dt_proj.bias", "dt_proj_b.bias"): "scan.dt_bias",
    ("conv1d.weight", "conv1d_b.weight"): "conv_weight",
    ("conv1d.bias", "conv1d_b.bias"): "conv_bias",
}


def checkpoint_filter_fn(state: dict[str, Tensor], model: Vim) -> dict[str, Tensor]:
    """Official Vim weights, or ours, as a state dict of `model`; a square position embedding is resized to its grid."""
    # Buffers of older checkpoints, computed and not learned.
    state = {name: value for name, value in state.items() if not name.startswith("rope.")}
    state = {
        name.replace("layers.", "blocks.", 1).replace("norm_f.", "norm.", 1): value for name, value in state.items()
    }
    for i in range(len(model.blocks)):
        mixer = f"blocks.{i}.mixer."
        for (forwards, backwards), ours in _STACKED.items():
            pair = mixer + forwards, mixer + backwards
            if pair[0] in state and pair[1] in state and state[pair[0]].shape == state[pair[1]].shape:
                stacked = torch.stack([state.pop(name) for name in pair])
                state[mixer + ours] = stacked.squeeze(2) if ours == "conv_weight" else stacked
    position = state.get("pos_embed")
    if position is not None and position.shape[1:] != model.pos_embed.shape[1:]:
        side = math.isqrt(max(position.shape[1] - 1, 0))
        if side * side + 1 == position.shape[1]:
            state["pos_embed"] = resize_position(position, (side, side), *model.grid)
    return state


def _cfg(url: str, pool_size: tuple[int, int] = (14, 14)) -> dict[str, Any]:
    return imagenet_cfg(
        Vim.first_conv,
        Vim.classifier,
        url=f"https://huggingface.co/hustvl/{url}",
        pool_size=pool_size,
        license="apache-2.0",
        origin_url="https://github.com/hustvl/Vim",
        paper_ids="arXiv:2401.09417",
    )


default_cfgs = generate_default_cfgs(
    {
        "vim_tiny.hustvl_in1k": _cfg("Vim-tiny-midclstok/resolve/main/vim_t_midclstok_76p1acc.pth"),
        "vim_tiny_plus.hustvl_in1k": _cfg(
            "Vim-tiny-midclstok/resolve/main/vim_t_midclstok_ft_78p3acc.pth", pool_size=(27, 27)
        ),
        "vim_small.hustvl_in1k": _cfg("Vim-small-midclstok/resolve/main/vim_s_midclstok_80p5acc.pth"),
        "vim_small_plus.hustvl_in1k": _cfg(
            "Vim-small-midclstok/resolve/main/vim_s_midclstok_ft_81p6acc.pth", pool_size=(27, 27)
        ),
        "vim_base.hustvl_in1k": _cfg("Vim-base-midclstok/resolve/main/vim_b_midclstok_81p9acc.pth"),
    }
)


def _create_vim(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    # Four maps by default, after every quarter of the depth, as in the official segmentation: 5, 11, 17, 23.
    return build(Vim, variant, pretrained, default_indices=quarters(kwargs.get("depth", 24)), **kwargs)


@register_model
def vim_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Vim-Ti: 7.1 M parameters, 76.1 % top-1 (published)."""
    return _create_vim("vim_tiny", pretrained, **{"embed_dim": 192, **kwargs})


@register_model
def vim_tiny_plus(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Vim-Ti+ with overlapping patches: 7.3 M parameters, 78.3 % top-1 (published)."""
    return _create_vim("vim_tiny_plus", pretrained, **{"embed_dim": 192, "stride": 8, **kwargs})


@register_model
def vim_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Vim-S: 25.8 M parameters, 80.5 % top-1 (published)."""
    return _create_vim("vim_small", pretrained, **{"embed_dim": 384, **kwargs})


@register_model
def vim_small_plus(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Vim-S+ with overlapping patches: 26.0 M parameters, 81.6 % top-1 (published)."""
    return _create_vim("vim_small_plus", pretrained, **{"embed_dim": 384, "stride": 8, **kwargs})


@register_model
def vim_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Vim-B: 97.6 M parameters, 81.9 % top-1 (published)."""
    return _create_vim("vim_base", pretrained, **{"embed_dim": 768, **kwargs})
