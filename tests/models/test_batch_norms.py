"""Layers that take the place of batch norms compute the same: synchronised ones, frozen ones."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from families import CLASSES, shallow
from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d
from torch import nn

CONVERSIONS = {
    "torch's SyncBatchNorm": nn.SyncBatchNorm.convert_sync_batchnorm,
    "timm's SyncBatchNorm": convert_sync_batchnorm,
    "frozen": freeze_batch_norm_2d,
}


@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS)
@pytest.mark.parametrize("kind", [*map(shallow, CLASSES)], ids=lambda kind: kind[0])
def test_logits_stay_the_same(kind: tuple[str, dict], convert: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    model, images = timm.create_model(kind[0], **kind[1]), torch.randn(2, 3, 64, 32)
    if not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()):
        pytest.skip("has no batch norm")
    model(images)  # other statistics than zeros and ones
    converted = convert(copy.deepcopy(model)).eval()
    torch.testing.assert_close(converted(images), model.eval()(images))
