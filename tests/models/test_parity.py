"""Agreement with the official implementations, on every record and every recorded size."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import timm
import torch
from records import RECORDS, assert_trace, image, layer_norm, official_weights, record
from torch import Tensor, nn

import vssm  # noqa: F401
from vssm.models import efficientvmamba, msvmamba, vim, vmamba

CASES = [(model, i) for model in RECORDS for i in range(len(record(model)["cases"]))]
FAMILY = {"vim": vim, "vmamba": vmamba, "msvmamba": msvmamba, "efficientvmamba": efficientvmamba}


@pytest.fixture(scope="module")
def official() -> dict[str, nn.Module]:
    """Each model with its record's weights, loaded strictly through the family's filter."""
    models = {}
    for name in RECORDS:
        model = timm.create_model(name).eval()
        state = FAMILY[record(name)["family"]].checkpoint_filter_fn(official_weights(name), model)
        model.load_state_dict(state, strict=True)
        models[name] = model
    return models


def traces(name: str, case: int) -> dict[str, dict]:
    return {trace["name"]: trace for trace in record(name)["cases"][case]["features"]}


@pytest.mark.parametrize("name", RECORDS)
def test_parameter_count(official: dict[str, nn.Module], name: str) -> None:
    assert sum(p.numel() for p in official[name].parameters()) == record(name)["params"]


@torch.inference_mode()
@pytest.mark.parametrize(("name", "case"), CASES)
def test_logits(official: dict[str, nn.Module], name: str, case: int) -> None:
    recorded = record(name)["cases"][case]
    logits = official[name](image(recorded))
    torch.testing.assert_close(logits, torch.tensor(recorded["logits"]), atol=5e-5, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize(("name", "case"), [(n, c) for n, c in CASES if n.startswith("vim")])
def test_vim_traces(official: dict[str, nn.Module], name: str, case: int) -> None:
    model, expected, x = official[name], traces(name, case), image(record(name)["cases"][case])
    with watch(model, "patch_embed", "blocks.0.mixer", *(f"blocks.{i}" for i in range(24))) as seen:
        features = model.forward_features(x)
    assert_trace(seen["patch_embed"][1].flatten(1, 2), expected["module patch_embed output"])
    assert_trace(seen["blocks.0.mixer"][1], expected["module layers.0.mixer output"])
    for i in (0, 1, 5, 11, 17, 23):
        before, after = seen[f"blocks.{i}"]
        # Officially a layer returns its mixer's output and the residual stream that this is still to be added to.
        assert_trace(before, expected[f"module layers.{i} output[1]"])
        assert_trace(after - before, expected[f"module layers.{i} output[0]"])
    whole = [trace for trace_name, trace in expected.items() if trace_name.startswith("forward_features")]
    for trace in whole:
        assert_trace(model.class_token(features), trace)


@torch.inference_mode()
@pytest.mark.parametrize(("name", "case"), [(n, c) for n, c in CASES if record(n)["family"] == "vmamba"])
def test_vmamba_traces(official: dict[str, nn.Module], name: str, case: int) -> None:
    model, expected, x = official[name], traces(name, case), image(record(name)["cases"][case])
    channels_first = "vanilla" not in name  # the layout of the official maps
    block = "stages.0.blocks.0"
    ours = {
        "patch_embed": "stem",
        "layers.0.blocks.0.norm": f"{block}.norm",
        "layers.0.blocks.0.op.in_proj": f"{block}.mixer.in_proj",
        "layers.0.blocks.0.op": f"{block}.mixer",
        "layers.0.blocks.0.norm2": f"{block}.norm2",
        "layers.0.blocks.0.mlp": f"{block}.mlp",
        "layers.0.blocks.0": block,
        **{f"layers.{i}.downsample": f"stages.{i + 1}.downsample" for i in range(3)},
        **{f"layers.{i}.blocks": f"stages.{i}.blocks" for i in range(4)},
        "classifier.norm": "norm",
    }
    ours = {f"module {theirs} output": path for theirs, path in ours.items() if f"module {theirs} output" in expected}
    assert len(ours) >= 8
    maps = model.forward_intermediates(x, intermediates_only=True)
    with watch(model, *ours.values()) as seen:
        model(x)
    for trace_name, path in ours.items():
        output = seen[path][1]
        assert_trace(output.permute(0, 3, 1, 2) if channels_first else output, expected[trace_name])
    for trace_name, trace in expected.items():
        if trace_name.startswith("Backbone_VSSM output"):
            i = int(trace_name.split()[2])
            normed = layer_norm(maps[i].shape[1], f"outnorm{i}")(maps[i].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            assert_trace(normed.contiguous(), trace)


# Names of official modules in their records -> ours, in this order. An official stage ends in the downsampling.
MSVMAMBA_NAMES = [
    (r"^patch_embed$", "stem"),
    (r"^classifier\.norm$", "norm"),
    (r"^classifier\.flatten$", "head.global_pool"),
    (r"^layers\.0\.downsample$", "stages.1.downsample"),
    (r"^layers\.1\.downsample$", "stages.2.downsample"),
    (r"^layers\.2\.downsample$", "stages.3.downsample"),
    (r"^layers\.", "stages."),
    (r"\.op\.conv2d$", ".mixer.conv"),
    (r"\.op\.conv2d_b1$", ".mixer.half_conv"),
    (r"\.op\.out_norm$", ".mixer.norm"),
    (r"\.op\.se$", ".mixer.channel_gate"),
    (r"\.op\b", ".mixer"),
    (r"\.convFFN$", ".mlp"),
]
EFFICIENTVMAMBA_NAMES = [
    (r"^layers\.0$", "stages.1.downsample"),
    (r"^layers\.1$", "stages.2.downsample"),
    (r"^layers\.2$", "stages.3.downsample"),
    (r"^layers\.2\.5$", "stages.2.blocks"),
    (r"^layers\.([23])\.1$", r"stages.\1.blocks.0"),
    (r"\.conv_branch$", ".local"),
    (r"\.se$", ".attention"),
]


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "case"), [(n, c) for n, c in CASES if record(n)["family"] in ("msvmamba", "efficientvmamba")]
)
def test_traces_of_every_recorded_module(official: dict[str, nn.Module], name: str, case: int) -> None:
    """A module called several times in a forward pass has as many traces, in the order of the calls."""
    model, recorded = official[name], record(name)["cases"][case]
    names = EFFICIENTVMAMBA_NAMES + MSVMAMBA_NAMES if name.startswith("efficient") else MSVMAMBA_NAMES
    expected: dict[str, list[dict]] = {}
    for trace in recorded["features"]:
        path = trace["name"].removeprefix("module ").removesuffix(" output")
        for theirs, ours in names:
            path = re.sub(theirs, ours, path)
        # The first block of a stage is recorded once more where it is also the last.
        if trace not in expected.setdefault(path, []):
            expected[path].append(trace)
    assert len(expected) >= 19
    outputs: dict[str, list[Tensor]] = {path: [] for path in expected}
    hooks = [
        model.get_submodule(path).register_forward_hook(
            lambda module, inputs, output, path=path: outputs[path].append(output)
        )
        for path in expected
    ]
    model(image(recorded))
    for hook in hooks:
        hook.remove()
    for path, traces_of_module in expected.items():
        for output, trace in zip(outputs[path], traces_of_module, strict=True):
            assert_trace(laid_out(output, trace["shape"]), trace)


def laid_out(output: Tensor, shape: list[int]) -> Tensor:
    """Our channels-last map as the record has it: channels first, or as tokens."""
    if output.dim() == 4 and len(shape) == 3:
        return output.flatten(1, 2)
    return output if list(output.shape) == shape else output.permute(0, 3, 1, 2)


@contextmanager
def watch(model: nn.Module, *paths: str) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Input and output of each named module in the forward passes inside the block."""
    seen = {}
    hooks = [
        model.get_submodule(path).register_forward_hook(
            lambda module, inputs, output, path=path: seen.__setitem__(path, (inputs[0], output))
        )
        for path in paths
    ]
    yield seen
    for hook in hooks:
        hook.remove()
