"""Agreement with the official implementations, on every record and every recorded size."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache

import pytest
import timm
import torch
from records import CASES, RECORDS, assert_trace, image, layer_norm, official_weights, record
from torch import Tensor

from vssm.models import Backbone, Plain, official_state_dict, our_layout

every_record = pytest.mark.parametrize("name", RECORDS)
every_case = pytest.mark.parametrize(("name", "case"), CASES)

# Traces of tensors inside an official function, which no module of ours returns.
INSIDE = r"layers\.0\.mixer (xz|forward branch|backward)"


@cache
def official(name: str) -> Backbone:
    """A model with its record's weights, loaded strictly."""
    model = timm.create_model(name).eval()
    model.load_state_dict(our_layout(official_weights(name), model), strict=True)
    return model


@every_record
def test_parameter_count(name: str) -> None:
    assert sum(p.numel() for p in official(name).parameters()) == record(name)["params"]


@every_record
def test_official_layout_comes_back_whole(name: str) -> None:
    """What is read from an official state dict is written as it was, tensor by tensor."""
    weights = official_weights(name)
    written = official_state_dict(official(name))
    assert set(written) == set(weights)
    for key, value in weights.items():
        torch.testing.assert_close(written[key], value, rtol=0, atol=0, msg=key)


@torch.inference_mode()
@every_case
def test_logits(name: str, case: int) -> None:
    recorded = record(name)["cases"][case]
    logits = official(name)(image(recorded))
    torch.testing.assert_close(logits, torch.tensor(recorded["logits"]), atol=5e-5, rtol=0)


@torch.inference_mode()
@every_case
def test_every_recorded_trace(name: str, case: int) -> None:
    """Outputs of modules, in the order of their calls; maps with the norms of detection; the final class token."""
    model, recorded = official(name), record(name)["cases"][case]
    x = image(recorded)
    names = list(model.state_dict())
    calls: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for path, module in model.named_modules():
        module.register_forward_hook(lambda module, inputs, output, path=path: calls[path].append((inputs[0], output)))
    features = model.forward_features(x)
    model.forward_head(features)
    for module in model.modules():
        module._forward_hooks.clear()
    maps = [] if isinstance(model, Plain) else model.forward_intermediates(x, intermediates_only=True)

    used: dict[tuple[str, str], int] = defaultdict(int)
    seen: list[dict] = []
    compared = 0
    for trace in recorded["features"]:
        title = trace["name"]
        if trace in seen:  # the first block of a stage is recorded once more where it is also the last
            continue
        seen.append(trace)
        if found := re.fullmatch(r"module (\S+) output(?:\[([01])\])?", title):
            official_path, part = found.groups()
            path = model.renaming.module(official_path, names)
            before, after = calls[path][used[official_path, part]]
            used[official_path, part] += 1
            # An official block of Mamba's code returns its branch, and the residual stream that it is to be added to.
            output = {None: after, "0": after - before if part else None, "1": before}[part]
            assert_trace(laid_out(output, trace["shape"]), trace)
        elif found := re.match(r"Backbone_VSSM output (\d+)", title):
            i = int(found[1])
            normed = layer_norm(maps[i].shape[1], f"outnorm{i}")(maps[i].permute(0, 2, 3, 1))
            assert_trace(normed.permute(0, 3, 1, 2).contiguous(), trace)
        elif title.startswith("forward_features"):
            assert_trace(model.class_token(features), trace)
        else:
            assert re.match(INSIDE, title), f"a trace that nothing compares: {title}"
            continue
        compared += 1
    assert compared


def laid_out(output: Tensor, shape: list[int]) -> Tensor:
    """Our channels-last map or tokens as the record has them: channels first or last, one position axis or two."""
    if list(output.shape) == shape:
        return output
    tokens = output.flatten(1, -2)
    channels_first = tokens.shape[-1] == shape[1]
    return (tokens.transpose(1, 2) if channels_first else tokens).reshape(shape)
