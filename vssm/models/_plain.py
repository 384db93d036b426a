"""timm's contract for plain models: blocks of one stride, on tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm.layers import get_device_dtype, to_2tuple
from timm.models._input import update_model_input_size
from torch import Tensor, nn

from vssm.models._arguments import check_arguments, checked_pool
from vssm.models._contract import Backbone, Indices, as_format, check_format, take_indices, with_defaults
from vssm.models._recomputed import recomputed
from vssm.nn import Blocks, PatchStem, insert_class_row, resize_position, split_class_row
from vssm.scan import place_of_class_token


class Plain(Backbone):
    """Patch embedding, blocks of one size, norm, pooling, classifier: tokens (batch, tokens, channels) throughout.

    A family sets `blocks` (each takes tokens, height, width), `norm` and what `embed` needs. One with a class token
    sets `has_class_token` and defines `patch_tokens` and `class_token`, which take the tokens apart.

    Args:
        num_features: channels of the tokens.
        stride: pixels from one patch to the next.
        depth: number of blocks.
        in_chans, num_classes, drop_rate: as everywhere in timm.
        global_pool: "token" (only with a class token), "avg", "max", or "" for none.
    """

    classifier = "head"
    output_fmt = "NLC"
    has_class_token = False
    pools: tuple[str, ...] = ("avg", "max", "")
    blocks: nn.Sequential
    norm: nn.Module

    def __init__(
        self,
        num_features: int,
        stride: int,
        depth: int,
        in_chans: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.in_chans, self.num_classes = in_chans, num_classes
        self.num_features = self.head_hidden_size = num_features
        self.global_pool = self._checked_pool(global_pool)
        self.grad_checkpointing = False
        self.feature_info = [
            {"num_chs": num_features, "reduction": stride, "module": f"blocks.{i}"} for i in range(depth)
        ]
        self.head_drop = nn.Dropout(drop_rate)
        self.head = _linear(num_features, num_classes, device=device, dtype=dtype)

    @classmethod
    def count_maps(cls, arguments: Mapping[str, Any]) -> int:
        return with_defaults(cls, arguments)["depth"]

    def _checked_pool(self, global_pool: str) -> str:
        return checked_pool(global_pool, ("token", *self.pools) if self.has_class_token else self.pools)

    def embed(self, image: Tensor) -> tuple[Tensor, int, int]:
        """Tokens for the first block, and the height and width of the grid of patches."""
        raise NotImplementedError

    def patch_tokens(self, tokens: Tensor) -> Tensor:
        """The tokens of the grid, in raster order: all of them where there is no class token."""
        return tokens

    def class_token(self, tokens: Tensor) -> Tensor:
        """(batch, channels)."""
        raise NotImplementedError

    def forward_features(self, image: Tensor) -> Tensor:
        tokens, height, width = self.embed(image)
        # All at once where nothing has to be done for each: see Blocks.
        whole = isinstance(self.blocks, Blocks) and not self.grad_checkpointing
        for block in [self.blocks] if whole else self.blocks:
            tokens = self._run(block, tokens, height, width)
        return self.norm(tokens)

    def _run(self, block: Callable[..., Tensor], tokens: Tensor, height: int, width: int) -> Tensor:
        if self.grad_checkpointing:
            return recomputed(block, tokens, height, width)
        return block(tokens, height, width)

    def run_to_map(self, block: nn.Module, tokens: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """The tokens after a block, and those that a map is made of: the same, unless a family taps another place."""
        tokens = self._run(block, tokens, height, width)
        return tokens, tokens

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = self.head_drop(self._pool(features))
        return pooled if pre_logits else self.head(pooled)

    def _pool(self, tokens: Tensor) -> Tensor:
        match self.global_pool:
            case "token":
                return self.class_token(tokens)
            case "avg":
                return self.patch_tokens(tokens).mean(1)
            case "max":
                return self.patch_tokens(tokens).amax(1)
            case _:
                return tokens

    def forward_intermediates(
        self,
        image: Tensor,
        indices: Indices = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        check_format(output_fmt)
        taken, last = take_indices(len(self.blocks), indices)
        tokens, height, width = self.embed(image)
        found = {}
        for i, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            if i in taken:
                tokens, tapped = self.run_to_map(block, tokens, height, width)
                patches = self.patch_tokens(self.norm(tokens) if norm else tapped)
                found[i] = as_format(patches.unflatten(1, (height, width)).to(image.dtype), output_fmt)
            else:
                tokens = self._run(block, tokens, height, width)
        maps = [found[i] for i in taken]
        return maps if intermediates_only else (self.norm(tokens), maps)

    def prune_intermediate_layers(
        self, indices: Indices = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        taken, last = take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier (none for 0 classes), and another pooling where given."""
        check_arguments({"num_classes": num_classes})
        if global_pool is not None:
            self.global_pool = self._checked_pool(global_pool)
        self.num_classes = num_classes
        self.head = _linear(self.num_features, num_classes, **get_device_dtype(self)).train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass instead of keeping their activations."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups from stem to head, for layer-wise learning rates."""
        return {
            "stem": r"^cls_token|^pos_embed|^patch_embed|^pre_norm",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm|^fc_norm", (99999,))],
        }


class PlainWithPosition(Plain):
    """A plain model of patches with a learned position embedding and, where `has_class_token`, a class token in the
    middle of the sequence.

    A family sets `patch_embed` and calls `add_position`; `antialias` is how the position embedding is resized.
    """

    patch_embed: PatchStem
    antialias = True

    def add_position(
        self,
        img_size: int | tuple[int, int],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Make the class token and the position embedding for images of a size in pixels, not initialised."""
        dd = {"device": device, "dtype": dtype}
        self.grid = self.patch_embed.grid(*to_2tuple(img_size))
        if self.has_class_token:
            self.cls_token = nn.Parameter(torch.empty(1, 1, self.num_features, **dd))
        tokens = self.grid[0] * self.grid[1] + self.has_class_token
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, self.num_features, **dd))

    def embed(self, image: Tensor) -> tuple[Tensor, int, int]:
        tokens = self.patch_embed(image)
        batch, height, width, _ = tokens.shape
        tokens = tokens.flatten(1, 2)
        if self.has_class_token:
            tokens = insert_class_row(tokens, self.cls_token.expand(batch, -1, -1))
        tokens = tokens + self._resized(self.pos_embed, self.grid, height, width)
        return tokens.to(torch.promote_types(self.pos_embed.dtype, torch.float32)), height, width

    def class_token(self, tokens: Tensor) -> Tensor:
        return tokens[:, place_of_class_token(tokens.shape[1] - 1)]

    def patch_tokens(self, tokens: Tensor) -> Tensor:
        return split_class_row(tokens)[1] if self.has_class_token else tokens

    def _resized(self, position: Tensor, old_grid: tuple[int, int], height: int, width: int) -> Tensor:
        return resize_position(position, old_grid, height, width, self.antialias)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Store the position embedding for another image size, in pixels, for instance before fine-tuning at it."""
        check_arguments({"img_size": img_size})
        grid = self.patch_embed.grid(*to_2tuple(img_size))
        resized = self._resized(self.pos_embed.detach(), self.grid, *grid)
        self.pos_embed = nn.Parameter(resized.clone(), requires_grad=self.pos_embed.requires_grad)
        self.grid = grid
        update_model_input_size(self, img_size)  # with which timm builds the model again

    def no_weight_decay(self) -> set[str]:
        # official: one-dimensional tensors, biases, and the two embeddings. Our stacked biases and D are
        # two-dimensional, so they are named. A_log is decayed: the official flag on it is read by no optimiser.
        return self.parameters_ending("cls_token", "pos_embed", "conv_bias", "dt_bias", "D")

    def resize_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A position embedding of another number of tokens, resized to this model's grid.

        It is of the image size that a repository of the Hugging Face hub names, or else of square images.
        """
        position = state.get("pos_embed")
        if position is not None and position.dim() == 3 and position.shape[1:] != self.pos_embed.shape[1:]:
            tokens = max(position.shape[1] - self.has_class_token, 0)
            grids = [(math.isqrt(tokens), math.isqrt(tokens))]
            if named := getattr(self, "pretrained_model_args", {}).get("img_size"):
                grids.insert(0, self.patch_embed.grid(*to_2tuple(named)))
            for grid in grids:
                if math.prod(grid) == tokens:
                    return state | {"pos_embed": self._resized(position, grid, *self.grid)}
        return state


def with_norm_biases(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A state dict that has zeros where norms of the model have a bias, and those that it comes from have none.

    So the authors read the root-mean-square norms of a classifier into the layer norms of a segmentor.
    """
    biases = {
        name: torch.zeros_like(value)
        for name, value in model.state_dict().items()
        if name.endswith("norm.bias") and f"{name.removesuffix('bias')}weight" in state
    }
    return biases | state


def _linear(in_features: int, num_classes: int, **dd: Any) -> nn.Module:
    return nn.Linear(in_features, num_classes, **dd) if num_classes > 0 else nn.Identity()
