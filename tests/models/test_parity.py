"""Agreement with the official implementations, on every record and every recorded size."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import lru_cache

import pytest
import torch
from records import RECORDS, assert_trace, image, layer_norm
from torch import Tensor

from vssm.models import Backbone, official_state_dict, our_layout

MODELS = {name: record for name, record in RECORDS.items() if not record.segmentor}
every_record = pytest.mark.parametrize("name", MODELS)
every_case = pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name, record in MODELS.items() for case in range(len(record.cases))]
)


@lru_cache(maxsize=1)
def official(name: str) -> Backbone:
    """A model with its record's weights, loaded strictly."""
    model = RECORDS[name].create().eval()
    model.load_state_dict(our_layout(RECORDS[name].official_weights(), model), strict=True)
    return model


@every_record
def test_official_layout_comes_back_whole(name: str) -> None:
    """As many parameters as officially; a state dict that is read is written as it was, tensor by tensor."""
    assert sum(p.numel() for p in official(name).parameters()) == RECORDS[name].parameters
    weights = RECORDS[name].official_weights()
    written = official_state_dict(official(name))
    assert set(written) == set(weights)
    for key, value in weights.items():
        torch.testing.assert_close(written[key], value, rtol=0, atol=0, msg=key)


@torch.inference_mode()
@every_case
def test_logits_and_every_recorded_trace(name: str, case: int) -> None:
    """Outputs of modules, in the order of their calls, and maps with the norms of detection."""
    record = RECORDS[name]
    model, recorded = official(name), record.cases[case]
    x = image(recorded)
    names = list(model.state_dict())
    calls: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    hooks = [
        module.register_forward_hook(lambda module, inputs, output, path=path: calls[path].append((inputs[0], output)))
        for path, module in model.named_modules()
    ]
    logits = model(x)
    for hook in hooks:
        hook.remove()
    if recorded.get("logits"):
        expected = torch.tensor(recorded["logits"])
        tolerance = record.tolerance * max(1, expected.abs().mean().item())
        torch.testing.assert_close(logits, expected, atol=tolerance, rtol=0)

    used: dict[tuple[str, str], int] = defaultdict(int)
    seen: list[dict] = []
    maps: list[Tensor] = []
    compared = 0
    for trace in recorded["features"]:
        title = trace["name"]
        if trace in seen:  # the first block of a stage is recorded once more where it is also the last
            continue
        seen.append(trace)
        if named := record.where(title):
            (path,) = named
            if path is None:
                continue
            marks, _, module = path.rpartition(" ")
            before, after = calls[module][used[path, ""]]
            used[path, ""] += 1
            output = before if "<" in marks else after
            output = output.flip(*range(1, output.dim() - 1)) if "~" in marks else output
            if part := re.search(r"(\d)/(\d)", marks):
                output = output.chunk(int(part[2]), dim=-1)[int(part[1]) - 1]
            output = laid_out(output, trace["shape"])
        elif found := re.fullmatch(r"module (\S+) output(?:\[([01])\])?", title):
            official_path, part = found.groups()
            path = model.renaming.module(official_path, names)
            # An official block of Mamba's code returns its branch, and the residual stream that it is to be added to.
            path += {None: "", "0": ".mixer", "1": ".norm"}[part]
            before, after = calls[path][used[official_path, part]]
            used[official_path, part] += 1
            output = laid_out(before if part == "1" else after, trace["shape"])
        elif found := re.match(r"(?:Backbone_VSSM|backbone) output (\d+)", title):
            i = int(found[1])
            maps = maps or model.forward_intermediates(x, intermediates_only=True)
            normed = layer_norm(maps[i].shape[1], f"outnorm{i}")(maps[i].permute(0, 2, 3, 1))
            output = normed.permute(0, 3, 1, 2).contiguous()
        else:
            raise AssertionError(f"{name}: no entry under `traces` for {title!r}")
        assert_trace(output, trace, record.tolerance, record.std_correction)
        compared += 1
    assert compared


def laid_out(output: Tensor, shape: list[int]) -> Tensor:
    """Our channels-last map or tokens as the record has them: channels first or last, one position axis or two."""
    if list(output.shape) == shape:
        return output
    tokens = output.flatten(1, -2)
    channels_first = tokens.shape[-1] == shape[1]
    return (tokens.transpose(1, 2) if channels_first else tokens).reshape(shape)
