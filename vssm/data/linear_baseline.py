"""The accuracy of a linear classifier on raw pixels, which shows whether a set of images is too easy."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from vssm.data.dataset import ImageDataset
from vssm.data.transforms import TimmTransform


def linear_accuracy(
    folder: str | Path, *, image_size: int = 64, epochs: int = 10, learning_rate: float = 1e-4, seed: int = 0
) -> float:
    """Train multinomial logistic regression on pixels, and return its best top-1 accuracy over the epochs.

    The best epoch is chosen on the images that are scored, so the number is an upper bound of what it reaches.

    Args:
        folder: with `train` and `val` in the ImageFolder layout.
        image_size: side to which images are scaled, in pixels.
        epochs, learning_rate: of Adam, in batches of 64.
        seed: of the order of the images.

    Returns:
        Accuracy on `val`, 0 to 1.
    """
    pixels, labels = _load(Path(folder), "train", image_size)
    held_out_pixels, held_out_labels = _load(Path(folder), "val", image_size)
    generator = torch.Generator().manual_seed(seed)
    classifier = nn.Linear(pixels.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=learning_rate)
    best = 0.0
    for _ in range(epochs):
        for batch in torch.randperm(len(labels), generator=generator).split(64):
            loss = nn.functional.cross_entropy(classifier(pixels[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            right = classifier(held_out_pixels).argmax(dim=1) == held_out_labels
        best = max(best, right.float().mean().item())
    return best


def _load(folder: Path, split: str, image_size: int) -> tuple[Tensor, Tensor]:
    """Normalised pixels (images, 3 * image_size ** 2) and labels (images,) of a split."""
    dataset = ImageDataset(folder, split, transform=TimmTransform(image_size, crop_pct=1.0))
    samples = [dataset[index] for index in range(len(dataset))]
    pixels = torch.stack([sample["inputs"].flatten() for sample in samples])
    return pixels, torch.tensor([sample["label"] for sample in samples])
