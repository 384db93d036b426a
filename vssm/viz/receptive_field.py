"""Effective receptive fields: which pixels of an image influence the feature in the middle of the last map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from vssm.models import Backbone
from vssm.viz.style import GAP, INK, LITTLE_TO_MUCH, MARGIN, PALE, PAPER, bar, enlarged, font, save

SIDE = 256


def receptive_field(model: Backbone, images: Tensor) -> np.ndarray:
    """How strongly each pixel influences the feature in the middle of the model's last map.

    The gradient of that feature's sum over channels with respect to the image, its absolute values summed over the
    colours, as shares of an image's sum, averaged over the images (Luo et al., arXiv 1701.04128). Every other channel
    counts negative: the plain sum of what a layer norm returns is constant. Images are taken one at a time.

    Args:
        model: one of this package's; left in evaluation mode.
        images: (images, colours, height, width), as the model expects them.

    Returns:
        (height, width), its sum 1.

    Raises:
        ValueError: no image, or no pixel influences the feature.

    >>> import timm, vssm
    >>> model = timm.create_model("vmamba_tiny", dims=(16, 32), depths=(1, 1))
    >>> receptive_field(model, torch.randn(2, 3, 64, 48)).shape
    (64, 48)
    """
    if images.dim() != 4 or not len(images):
        raise ValueError(f"images are (images, colours, height, width), at least one; got {tuple(images.shape)}")
    model.eval()
    total = torch.zeros(images.shape[-2:], dtype=torch.float64)
    for image in images:
        image = image[None].detach().clone().requires_grad_()
        (features,) = model.forward_intermediates(image, indices=[-1], intermediates_only=True)
        middle = features[0, :, features.shape[2] // 2, features.shape[3] // 2]
        middle = middle[::2].sum() - middle[1::2].sum()
        (gradient,) = torch.autograd.grad(middle, image)
        field = gradient[0].abs().sum(0).double().cpu()
        if not field.sum() > 0:
            raise ValueError(
                "no pixel influences the feature in the middle: are the model's weights finite and not zero?"
            )
        total += field / field.sum()  # otherwise a few images with steep gradients dominate
    return (total / len(images)).numpy()


def area_share(field: np.ndarray, share: float) -> float:
    """The smallest part of the image's area, 0 to 1, that holds `share` of the field.

    >>> area_share(np.array([[0.5, 0.25], [0.25, 0.0]]), 0.75)
    0.5
    """
    held = np.sort(field.ravel())[::-1].cumsum() / field.sum()
    return float((np.searchsorted(held, share - 1e-12) + 1) / field.size)


def draw_receptive_fields(fields: Sequence[tuple[str, np.ndarray]], title: str, *, path: str | Path) -> Path:
    """Write a PNG: receptive fields side by side, each with its name and the area that holds half and nine tenths.

    Brightness is the fourth root of a pixel's share, relative to the largest, because the middle of a field is hundreds
    of times as strong as its edge.

    Args:
        fields: (name, field) pairs, such as before and after training.
        title: written above.
        path: of the file to write; its folder is made.

    Returns:
        The path.
    """
    panels = [_panel(name, field) for name, field in fields]
    width = max(2 * MARGIN + sum(panel.width for panel in panels) + GAP * (len(panels) - 1), 440)
    height = 2 * MARGIN + 30 + max(panel.height for panel in panels) + 30
    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN - 6), title, fill=INK, font=font(18))
    left = MARGIN
    for panel in panels:
        picture.paste(panel, (left, MARGIN + 30))
        left += panel.width + GAP
    bottom = height - MARGIN - 14
    picture.paste(bar(LITTLE_TO_MUCH, 120, 10), (MARGIN, bottom + 3))
    draw.text((MARGIN + 132, bottom), "none to most, fourth root", fill=PALE, font=font(12))
    return save(picture, path)


def _panel(name: str, field: np.ndarray) -> Image.Image:
    scale = max(1, round(SIDE / max(field.shape)))  # whole pixels, so that all cells have the same size
    size = field.shape[1] * scale, field.shape[0] * scale
    panel = Image.new("RGB", (max(size[0], 200), size[1] + 46), PAPER)
    panel.paste(enlarged((field / field.max()) ** 0.25, LITTLE_TO_MUCH, size), (0, 0))
    draw = ImageDraw.Draw(panel)
    draw.text((0, size[1] + 6), name, fill=INK, font=font(14))
    half, most = (f"{area_share(field, share):.1%}" for share in (0.5, 0.9))
    draw.text((0, size[1] + 26), f"half of it in {half} of the area, 90 % in {most}", fill=PALE, font=font(11))
    return panel
