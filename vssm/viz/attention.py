"""The hidden attention of a scan: how much each token contributes to a chosen one.

For given delta, B and C a selective scan is linear in its input, so it can be written as an attention matrix
(Ali et al., arXiv 2403.01590). In each direction and channel, with t the step of the chosen token and j a step before,

    y_t = sum_j a_tj u_j + D u_t,    a_tj = C_t exp(A (delta_{j+1} + ... + delta_t)) delta_j B_j
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from vssm.models import Backbone, Plain
from vssm.nn import SelectiveScan
from vssm.ops import ScanTable
from vssm.scan import ScanOrder, place_of_class_token
from vssm.viz.style import GAP, INK, LITTLE_TO_MUCH, MARGIN, PALE, PAPER, bar, enlarged, font, save

# Bytes allowed for the largest tensor; two of this size exist at a time.
MEMORY_LIMIT = 1 << 30
SIDE = 210
MARK = "#2da44e"


@dataclass(frozen=True)
class ScanInput:
    """The input of one of a model's scans, for one image.

    Args:
        name: of the scan among the model's modules.
        scan: the module.
        tokens: (tokens, channels) or (tokens, directions, channels).
        order: that it walks along.
    """

    name: str
    scan: SelectiveScan
    tokens: Tensor
    order: ScanOrder


def memory_needed(given: ScanInput) -> int:
    """Bytes of the largest tensor that hidden_attention makes: steps x channels x state in float32."""
    return 4 * given.order.steps * given.scan.A_log.shape[1] * given.scan.state


@torch.no_grad()
def hidden_attention(given: ScanInput, token: int) -> Tensor:
    """One row of the hidden attention: how much each token's input contributes to the output of `token`.

    The skip D is not part of it. Memory: see memory_needed, twice.

    Args:
        given: a scan and its input, see scan_input.
        token: index of the chosen token.

    Returns:
        (directions, channels, tokens); zero for tokens that a direction visits after the chosen one.

    Raises:
        ValueError: no such token, or more memory needed than MEMORY_LIMIT.
    """
    tokens = given.tokens.shape[0]
    if not 0 <= token < tokens:
        raise ValueError(f"token is {token}; expected 0 to {tokens - 1}")
    if (needed := memory_needed(given)) > MEMORY_LIMIT:
        raise ValueError(
            f"the hidden attention of {given.name} would take {needed / 2**30:.1f} GiB twice, and the limit is "
            f"{MEMORY_LIMIT / 2**30:.1f} GiB: take a smaller image, or a deeper layer of a pyramid"
        )
    scan, order = given.scan, given.order.table.to(given.tokens.device).long()
    projected = scan.project(given.tokens[None])
    low_rank, B, C = (given.order.gather(values.float())[0] for values in projected)
    delta = F.softplus(low_rank @ scan.dt_proj.float().mT + scan.dt_bias.float()[:, None])
    rows = given.tokens.new_zeros(order.shape[0], scan.A_log.shape[1], tokens + 1, dtype=torch.float32)
    for direction, step in (order == token).nonzero().tolist():
        walk = slice(0, step + 1)
        # Added up from the token backwards: a difference of sums from the first step would lose digits.
        since = F.pad(delta[direction, 1 : step + 1], (0, 0, 0, 1)).flip(0).cumsum(0).flip(0)
        decay = torch.exp(since[..., None] * scan.rates()[direction].float())
        weight = (decay * (C[direction, step] * B[direction, walk])[:, None]).sum(-1) * delta[direction, walk]
        # Empty steps (-1) go to an extra column before the first token, which is dropped.
        rows[direction].index_add_(1, order[direction, walk] + 1, weight.T)
    return rows[:, :, 1:]


def scan_names(model: Backbone) -> list[str]:
    """The names of a model's scans, from the stem to the head."""
    return [name for name, module in model.named_modules() if isinstance(module, SelectiveScan)]


@torch.no_grad()
def scan_input(model: Backbone, image: Tensor, layer: int = -1) -> ScanInput:
    """The input of one of the model's scans for an image.

    Args:
        model: one of this package's; left in evaluation mode.
        image: (colours, height, width), as the model expects it.
        layer: number of the scan from the stem; negative ones count from the head.

    Raises:
        ValueError: no such layer, no scan at all (VSSD), or scans that do more than to walk along an order, as those of
            LBMamba, PlainMamba and Spatial-Mamba, or that walk windows one by one, as those of MambaVision: their
            outputs are not what the formula above says.
    """
    names = scan_names(model)
    if not names:
        raise ValueError(f"{type(model).__name__} has no selective scan: there is no hidden attention to show")
    if not -len(names) <= layer < len(names):
        raise ValueError(
            f"layer is {layer}; this model has {len(names)} scans, so expected {-len(names)} to {len(names) - 1}"
        )
    scan, seen = model.get_submodule(names[layer]), []
    refusal = f"the scans of {type(model).__name__} do more than to walk along an order: hidden attention is not theirs"
    if type(scan) is not SelectiveScan:
        raise ValueError(refusal)
    hook = scan.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[:2]))
    try:
        model.eval()(image[None])
    finally:
        hook.remove()
    if not seen:  # its states were asked for
        raise ValueError(refusal)
    ((tokens, order),) = seen
    count = tokens.shape[1]
    if order is None:  # raster order
        table = torch.arange(count).expand(scan.directions, -1)
    else:
        table = (order.table if isinstance(order, ScanTable) else order).cpu()
    return ScanInput(names[layer], scan, tokens[0], ScanOrder(table, count))


def grid_of(count: int, image_size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) with `count` tokens whose aspect ratio is nearest to the image's.

    >>> grid_of(12, (60, 90)), grid_of(49, (224, 224))
    ((3, 4), (7, 7))
    """
    pairs = [(height, count // height) for height in range(1, count + 1) if count % height == 0]
    ratio = image_size[0] / image_size[1]
    return min(pairs, key=lambda pair: abs(np.log(pair[0] / pair[1] / ratio)))


def attention_maps(
    model: Backbone, image: Tensor, place: tuple[float, float] = (0.5, 0.5), layer: int = -1
) -> tuple[str, tuple[int, int], np.ndarray]:
    """The hidden attention of a token on the image's grid, its magnitude averaged over channels.

    Args:
        model, image, layer: see scan_input.
        place: of the token, down and along, from 0 to 1.

    Returns:
        The layer's name; the token's row and column; (directions, height, width).

    Raises:
        ValueError: no such layer, a place outside the image, or too much memory needed.
    """
    if not all(0 <= part <= 1 for part in place):
        raise ValueError(f"place is {place}; expected two numbers from 0 to 1, down and along")
    given = scan_input(model, image, layer)
    has_class_token = isinstance(model, Plain) and model.has_class_token
    height, width = grid_of(given.tokens.shape[0] - has_class_token, image.shape[-2:])
    row, column = (min(int(part * side), side - 1) for part, side in zip(place, (height, width), strict=True))
    token = row * width + column
    if has_class_token and token >= place_of_class_token(height * width):
        token += 1
    rows = hidden_attention(given, token).abs().mean(1)
    if has_class_token:
        rows = model.patch_tokens(rows[..., None])[..., 0]
    return given.name, (row, column), rows.unflatten(1, (height, width)).cpu().numpy()


def draw_attention(
    image: Image.Image, token: tuple[int, int], maps: np.ndarray, title: str, *, path: str | Path
) -> Path:
    """Write a PNG: the image with the chosen token framed, the attention of each direction, and their sum.

    Brightness is the square root of the attention, relative to the largest value of each map.

    Args:
        image: as the model saw it.
        token: row and column of the chosen token.
        maps: (directions, height, width).
        title: written above.
        path: of the file to write; its folder is made.

    Returns:
        The path.
    """
    grid = maps.shape[1:]
    scale = SIDE / max(grid)
    size = round(grid[1] * scale), round(grid[0] * scale)
    panels = [("image", image.convert("RGB").resize(size, Image.Resampling.BICUBIC))]
    panels += [(f"direction {number}", _heat(each, size)) for number, each in enumerate(maps, 1)]
    panels.append(("all directions", _heat(maps.sum(0), size)))
    columns = min(len(panels), 6)
    rows = -(-len(panels) // columns)
    step = size[0] + GAP, size[1] + 30
    picture = Image.new("RGB", (2 * MARGIN + columns * step[0] - GAP, 2 * MARGIN + 30 + rows * step[1] + 20), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN - 6), title, fill=INK, font=font(18))
    for place, (name, panel) in enumerate(panels):
        left, top = MARGIN + place % columns * step[0], MARGIN + 30 + place // columns * step[1]
        picture.paste(panel, (left, top))
        corner = left + token[1] * scale, top + token[0] * scale
        draw.rectangle((*corner, corner[0] + scale - 1, corner[1] + scale - 1), outline=MARK, width=2)
        draw.text((left, top + size[1] + 5), name, fill=INK, font=font(13))
    bottom = picture.height - MARGIN - 14
    picture.paste(bar(LITTLE_TO_MUCH, 120, 10), (MARGIN, bottom + 3))
    draw.text((MARGIN + 132, bottom), "none to most of a map, square root", fill=PALE, font=font(12))
    return save(picture, path)


def _heat(values: np.ndarray, size: tuple[int, int]) -> Image.Image:
    return enlarged(np.sqrt(values / max(values.max(), np.finfo(np.float32).tiny)), LITTLE_TO_MUCH, size)
