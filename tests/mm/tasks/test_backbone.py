"""One backbone class for every family: maps, freezing, checkpointing, and weights of any layout."""

import functools
import http.server
import re
import sys
import threading
from pathlib import Path

import pytest
import timm
import torch
from families import CLASSES, KINDS, model_class
from mmdet.registry import MODELS as MMDET
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import load_checkpoint as mmengine_load_checkpoint
from mmseg.registry import MODELS as MMSEG
from torch import Tensor, nn

import vssm.mm  # noqa: F401
from vssm.errors import ConfigError
from vssm.mm.tasks.backbone import VSSMBackbone
from vssm.models import CheckpointError, Plain, Pyramid, load_checkpoint, official_state_dict
from vssm.nn import Block

sys.path.insert(0, str(Path(__file__).parents[2] / "models"))

from records import RECORDS, Record, assert_trace, image, official_weights, parity

SMALL = dict(KINDS)
PYRAMID = {"dims": (16, 32, 64, 128), "depths": (1, 1, 1, 1)}
every_class = pytest.mark.parametrize("name", [name for name, _ in CLASSES])


def first_with_record(kind: type) -> dict[str, Record]:
    """Of each model class of a kind, the first model with a parity record, and the record."""
    found = {}
    for record in RECORDS.values():
        if issubclass(model_class(record.model), kind) and not record.segmentor:
            found.setdefault(model_class(record.model), record)
    return {record.model: record for record in found.values()}


def build(name: str = "vmamba_tiny", **kwargs: object) -> VSSMBackbone:
    return VSSMBackbone(name, **{**SMALL[name], **kwargs})


def backward(backbone: nn.Module, x: Tensor) -> None:
    torch.manual_seed(0)
    sum((y * torch.randn_like(y)).sum() for y in backbone(x)).backward()


def stages(backbone: VSSMBackbone) -> nn.Sequential:
    """The stages of a pyramid, the blocks of a plain model."""
    return backbone.model.blocks if isinstance(backbone.model, Plain) else backbone.model.stages


@every_class
@pytest.mark.parametrize("size", [(64, 96), (77, 101)])
def test_maps_have_the_promised_channels_and_strides(name: str, size: tuple[int, int]) -> None:
    backbone = build(name)
    backward(backbone, x := torch.randn(2, 3, *size))
    maps = backbone(x)
    assert len(maps) == min(4, len(timm.create_model(name, device="meta", **SMALL[name]).feature_info))
    for y, channels, stride in zip(maps, backbone.channels, backbone.strides, strict=True):
        rows, columns = (side / stride for side in size)
        assert y.shape[:2] == (2, channels)
        assert abs(y.shape[2] - rows) < 1 and abs(y.shape[3] - columns) < 1
        torch.testing.assert_close(y.mean(1), torch.zeros_like(y[:, 0]), atol=1e-4, rtol=0)  # each place is normed
    # What the maps do not need is not there: DistributedDataParallel waits for every gradient.
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("registry", [MODELS, MMDET, MMSEG])
def test_every_registry_builds_it(registry: object) -> None:
    backbone = registry.build({"type": "VSSMBackbone", "name": "vmamba_tiny", "out_indices": (1, 3), **PYRAMID})
    assert [y.shape[1] for y in backbone(torch.zeros(1, 3, 32, 32))] == [32, 128]


def test_timms_own_models_fit_in(tmp_path: Path) -> None:
    """For comparisons: maps, strides, freezing, and weights of a file through timm's own reader."""
    classifier = timm.create_model("resnet10t", num_classes=3)
    torch.save(classifier.state_dict(), file := tmp_path / "resnet.pth")
    backbone = VSSMBackbone(
        "resnet10t",
        out_indices=(1, 2, 3, 4),
        frozen_stages=0,
        pretrained=True,
        num_classes=3,
        pretrained_cfg_overlay={"file": str(file), "num_classes": 3},
    )
    backbone.init_weights()
    assert torch.equal(backbone.model.layer1[0].conv1.weight, classifier.layer1[0].conv1.weight)
    assert [tuple(y.shape[1:]) for y in backbone(torch.zeros(1, 3, 64, 96))] == [
        (channels, 64 // stride, 96 // stride)
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]
    assert backbone.strides == [4, 8, 16, 32]
    assert not backbone.model.conv1[0].weight.requires_grad and backbone.model.layer1[0].conv1.weight.requires_grad


def test_published_weights_that_cannot_be_had_are_told_in_a_sentence() -> None:
    nowhere = {"url": "http://127.0.0.1:9/weights.pth"}
    backbone = VSSMBackbone("vmamba_tiny", pretrained=True, pretrained_cfg_overlay=nowhere, **PYRAMID)
    with pytest.raises(CheckpointError, match=r"weights of vmamba_tiny could not be downloaded .*init_cfg\.checkpoint"):
        backbone.init_weights()


def test_fewer_maps_leave_later_stages_out() -> None:
    backbone = build(out_indices=(0, -3), output_norm=False)
    assert backbone.out_indices == [0, 1] and len(backbone.model.stages) == 2
    assert not any("norm" in name and name.startswith("model.outnorm") for name in backbone.state_dict())
    x = torch.randn(1, 3, 64, 64)
    whole = backbone.model.stages[0](backbone.model.stem(x))
    torch.testing.assert_close(backbone(x)[0], whole.permute(0, 3, 1, 2))


@pytest.mark.parametrize(("name", "eps"), [("mambavision_tiny", 1e-6), ("vmamba_tiny", 1e-5), ("resnet18", 1e-5)])
def test_norms_of_maps_have_the_official_eps(name: str, eps: float) -> None:
    backbone = VSSMBackbone(name, **SMALL.get(name, {}))
    assert {getattr(backbone.model, f"outnorm{i}").eps for i in backbone.out_indices} == {eps}


def test_vim_follows_the_size_in_training_and_evaluation() -> None:
    """The position embedding is that of the batch: two sizes with the same number of patches differ."""
    backbone = build("vim_tiny", out_indices=(-1,))
    for mode in (True, False):
        backbone.train(mode)
        wide, high = (backbone(torch.zeros(1, 3, *size))[0] for size in ((64, 128), (128, 64)))
        assert wide.shape[2:] == (4, 8) and high.shape[2:] == (8, 4)
        assert not torch.allclose(wide.flatten(2), high.flatten(2), atol=1e-3)


@every_class
def test_freezing_freezes_and_survives_train(name: str) -> None:
    backbone = build(name, frozen_stages=1)
    backbone.eval()
    backbone.train()
    before = {n: v.clone() for n, v in backbone.state_dict().items()}
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1, weight_decay=0.1)
    backward(backbone, torch.randn(2, 3, 64, 64))
    optimizer.step()
    after = backbone.state_dict()
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    stem, first_stage = backbone.model.group_matcher()["stem"], stages(backbone)[0]
    stage = next(n for n, module in backbone.model.named_modules() if module is first_stage)
    frozen = {n for n in before if re.match(rf"{stem}|^{re.escape(stage)}\.", n.removeprefix("model."))}
    assert frozen and not frozen & changed
    assert changed and all(p.grad is not None for n, p in backbone.named_parameters() if n not in frozen)
    first, second = stages(backbone)[:2]
    assert not any(module.training for module in first.modules()) and second.training


@pytest.mark.parametrize("norm_eval", [True, False])
def test_norm_eval_keeps_running_statistics(norm_eval: bool) -> None:
    backbone = build("efficientvmamba_tiny", norm_eval=norm_eval).train()
    statistic = backbone.model.stages[3].blocks[0].widen.bn.running_mean
    before = statistic.clone()
    backbone(torch.randn(2, 3, 64, 64))
    assert torch.equal(statistic, before) == norm_eval
    assert backbone.model.stages[3].training


@pytest.mark.parametrize(("name", "frozen_stages"), [*((name, 0) for name, _ in CLASSES), ("vmamba_tiny", -1)])
def test_checkpointing_gives_the_same_gradients(name: str, frozen_stages: int) -> None:
    """Of a whole stage with inputs that want no gradient, too."""
    x = torch.randn(1, 3, 64, 64)
    plain, saving = (build(name, grad_checkpointing=on, frozen_stages=frozen_stages).train() for on in (False, True))
    saving.load_state_dict(plain.state_dict())
    forwards = []
    stage = stages(saving)[1]
    block = stage if isinstance(saving.model, Plain) else stage.blocks[0]
    block = next((module for module in block.modules() if isinstance(module, Block)), block)
    getattr(block, "mixer", block).register_forward_pre_hook(lambda *_: forwards.append(1))
    for backbone in (plain, saving):
        backward(backbone, x)
    assert len(forwards) == 2  # once more in the backward pass
    theirs = dict(saving.named_parameters())
    for parameter_name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(theirs[parameter_name].grad, parameter.grad, msg=parameter_name)
        else:
            assert theirs[parameter_name].grad is None


def test_drop_path_rises_to_its_rate() -> None:
    backbone = build(drop_path_rate=0.3)
    rates = [block.drop_path.drop_prob for stage in backbone.model.stages for block in stage.blocks]
    assert rates == pytest.approx(torch.linspace(0, 0.3, len(rates)).tolist())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"name": "vmamba_tny"}, "vmamba_tiny"),
        ({"name": "vmamba_tiny", "window": 7}, "window"),
        ({"name": "vmamba_tiny", "scan_order": "no_such"}, "scan_order"),
        (
            {"name": "vmamba_tiny", "out_indices": (0, 4)},
            r"out_indices is \(0, 4\); expected rising numbers from 0 to 3",
        ),
        ({"name": "vmamba_tiny", "out_indices": (1, 0)}, "rising"),
        ({"name": "vmamba_tiny", "out_indices": ()}, "rising"),
        ({"name": "vmamba_tiny", "frozen_stages": 5}, "frozen_stages is 5; expected -1 for none, .* up to 4"),
        ({"name": "vmamba_tiny", "init_cfg": {"type": "Kaiming"}}, "expected dict.type='Pretrained'"),
        ({"name": "resnet10t", "init_cfg": {"type": "Pretrained", "checkpoint": "x"}}, "pretrained_cfg_overlay"),
        ({"name": "vmamba_tiny", "pretrained": True, "init_cfg": {"type": "Pretrained", "checkpoint": "x"}}, "one of"),
    ],
)
def test_bad_arguments_are_told(arguments: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        VSSMBackbone(**arguments)


# Weights

OFFICIAL, PLAIN = first_with_record(Pyramid), first_with_record(Plain)
# Those whose official detection backbone was recorded too.
DETECTION = "Backbone_VSSM output"
RECORDED = [
    name
    for name, record in OFFICIAL.items()
    if any(trace["name"].startswith(DETECTION) for case in record.cases for trace in case["features"])
]


def official_detector(backbone: VSSMBackbone, classifier: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """A detector in the official layout: the backbone without a classifier, a norm on every output, a head.

    Args:
        backbone: made with output_norm=False.
        classifier: in the official layout too, whose weights it has in place of its own.
    """
    own = official_state_dict(backbone.model)
    weights = {name: (classifier or own)[name] for name in own}
    for i, channels in enumerate(backbone.channels):
        for key in ("weight", "bias"):
            weights[f"outnorm{i}.{key}"] = parity.tensor_for(f"outnorm{i}.{key}", (channels,))
    # Mamba2D's classifiers have a backbone too.
    state = {f"backbone.{n.removeprefix('backbone.')}": v for n, v in weights.items()}
    return {**state, "neck.conv.weight": torch.zeros(4, 4)}


def pretrained(path: object) -> dict:
    return {"type": "Pretrained", "checkpoint": str(path)}


@torch.inference_mode()
@pytest.mark.parametrize("name", RECORDED)
def test_official_detection_backbone_gives_the_official_maps(name: str, tmp_path: Path) -> None:
    """From an official detector's file to the outputs that the official backbone was recorded with."""
    detector = official_detector(VSSMBackbone(name, output_norm=False), official_weights(name))
    torch.save({"state_dict": detector, "meta": {"epoch": 12}}, file := tmp_path / "detector.pth")
    backbone = VSSMBackbone(name, init_cfg=pretrained(file)).eval()
    backbone.init_weights()
    # The last of the cases with such outputs: of odd sizes, where there is one.
    recorded = {
        i: [trace for trace in case["features"] if trace["name"].startswith(DETECTION)]
        for i, case in enumerate(OFFICIAL[name].cases)
    }
    last = max(i for i, traces in recorded.items() if traces)
    for y, trace in zip(backbone(image(OFFICIAL[name].cases[last])), recorded[last], strict=True):
        assert_trace(y.contiguous(), trace)


@pytest.mark.parametrize("name", [name for name, _ in CLASSES if issubclass(model_class(name), Pyramid)])
def test_official_detector_loads_whole(name: str, tmp_path: Path) -> None:
    """The same weights by init_cfg, by PyTorch's strict loading of a whole detector, and by mmengine's."""
    state = official_detector(build(name, output_norm=False))
    torch.save({"state_dict": state}, file := tmp_path / "detector.pth")
    by_file = build(name, init_cfg=pretrained(file))
    by_file.init_weights()
    wanted = by_file.state_dict()
    assert torch.equal(wanted["model.outnorm2.weight"], state["backbone.outnorm2.weight"])
    detector, another = (
        nn.ModuleDict({"backbone": build(name), "neck": nn.ModuleDict({"conv": nn.Linear(4, 4, bias=False)})})
        for _ in range(2)
    )
    detector.load_state_dict(state)
    mmengine_load_checkpoint(another, str(file), strict=True)
    for whole in (detector, another):
        loaded = whole["backbone"].state_dict()
        assert all(torch.equal(loaded[n], wanted[n]) for n in wanted)


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_segmentor_of_another_size_loads(name: str, tmp_path: Path) -> None:
    """Position embeddings are resized; all other weights are those of the classifier."""
    official = official_weights(name)
    torch.save({"model": official}, tmp_path / "classifier.pth")
    load_checkpoint(classifier := timm.create_model(name), tmp_path / "classifier.pth")
    torch.save({"state_dict": {f"backbone.{n}": v for n, v in official.items()}}, file := tmp_path / "segmentor.pth")
    backbone = VSSMBackbone(name, img_size=320, init_cfg=pretrained(file), output_norm=False)
    backbone.init_weights()
    weights = classifier.state_dict()
    other = [n for n, v in backbone.model.state_dict().items() if not torch.equal(v, weights[n])]
    assert other and all("pos_embed" in n for n in other)


@every_class
def test_our_classifier_then_our_detector(name: str, tmp_path: Path) -> None:
    """A classifier's file of the training tools: classifier and final norm are left out, output norms start fresh."""
    classifier = timm.create_model(name, num_classes=7, **SMALL[name])
    torch.save({"state_dict": {f"backbone.{n}": v for n, v in classifier.state_dict().items()}}, tmp_path / "a.pth")
    first = build(name, init_cfg=pretrained(tmp_path / "a.pth"))
    first.init_weights()
    weights = classifier.state_dict()
    shared = {n: v for n, v in first.model.state_dict().items() if not n.startswith("outnorm")}
    assert all(torch.equal(v, weights[n]) for n, v in shared.items())
    for parameter in first.parameters():
        nn.init.normal_(parameter)
    torch.save({"state_dict": {f"backbone.{n}": v for n, v in first.state_dict().items()}}, tmp_path / "b.pth")
    second = build(name, init_cfg=pretrained(tmp_path / "b.pth"))
    second.init_weights()
    weights = second.state_dict()
    assert all(torch.equal(weights[n], v) for n, v in first.state_dict().items())


def test_a_checkpoint_that_does_not_fit_changes_nothing_and_says_why(tmp_path: Path) -> None:
    good = {f"backbone.{n}": v for n, v in build().state_dict().items()}
    one_norm = {n: v for n, v in good.items() if n != "backbone.model.outnorm1.bias"}
    other = {f"backbone.{n}": v for n, v in build(dims=(8, 24, 32, 40)).state_dict().items()}
    for state, told in (
        (one_norm, "1 missing .outnorm1.bias"),
        ({**good, "backbone.model.stages.0.extra": torch.zeros(1)}, "1 unexpected .stages.0.extra"),
        (other, r"misshapen .stem.conv1.weight: \(4, 3, 3, 3\), expected \(8, 3, 3, 3\)"),
    ):
        torch.save({"state_dict": state}, file := tmp_path / "bad.pth")
        backbone = build(init_cfg=pretrained(file))
        before = {n: v.clone() for n, v in backbone.state_dict().items()}
        with pytest.raises(CheckpointError, match=told):
            backbone.init_weights()
        assert all(torch.equal(v, before[n]) for n, v in backbone.state_dict().items())


def test_pretrained_weights_come_with_init_weights_only(tmp_path: Path) -> None:
    """Here from a file; without one, timm downloads the published weights at this point."""
    torch.save({"model": official_weights("vmamba_tiny_s1l8")}, file := tmp_path / "vmamba.pth")
    backbone = VSSMBackbone("vmamba_tiny", pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    stem = official_weights("vmamba_tiny_s1l8")["patch_embed.0.weight"]
    assert not torch.equal(backbone.model.stem.conv1.weight, stem)
    backbone.init_weights()
    assert torch.equal(backbone.model.stem.conv1.weight, stem)
    assert torch.equal(backbone.model.outnorm3.weight, torch.ones(768))


def test_weights_from_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two addresses whose files have the same name are two files."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    backbones = [build(), build()]
    for i, backbone in enumerate(backbones):
        (folder := tmp_path / "site" / str(i)).mkdir(parents=True)
        torch.save({"state_dict": {f"backbone.{n}": v for n, v in backbone.state_dict().items()}}, folder / "last.pth")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        site = f"http://127.0.0.1:{server.server_port}"
        for i, backbone in enumerate(backbones):
            loaded = build(init_cfg=pretrained(f"{site}/{i}/last.pth"))
            loaded.init_weights()
            weights = backbone.state_dict()
            assert all(torch.equal(v, weights[n]) for n, v in loaded.state_dict().items())
        with pytest.raises(CheckpointError, match=r"gone\.pth could not be downloaded .*404"):
            build(init_cfg=pretrained(f"{site}/gone.pth")).init_weights()
        server.shutdown()
