"""The description of a model in a checkpoint is plain, known and bounded, or refused before anything is built."""

import copy
import socket
from pathlib import Path

import pytest
import torch

from vssm.cli.prediction import load_predictor
from vssm.errors import ConfigError
from vssm.inference.create import create_model
from vssm.inference.description import MAX_DEPTH, MAX_VALUES, checked, describe
from vssm.models import CheckpointError

KNOWN = {"MaskRCNN", "ReLU", "Resize"}.__contains__


def nested(value: object, levels: int) -> object:
    for _ in range(levels):
        value = [value]
    return value


REFUSED = (
    [
        # Types
        ({"type": "os.system", "command": "ls"}, r"model\.type is 'os\.system', which a checkpoint may not build"),
        ({"type": "os"}, "may not build"),
        ({"type": "mmdet.MaskRCNN"}, "may not build"),
        ({"type": "mmengine::MaskRCNN"}, "may not build"),
        ({"type": ["MaskRCNN"]}, "type is a list"),
        ({"type": 3}, "type is 3"),
        ({"type": None}, "type is None"),
        ({"type": "__import__('os').system('ls')"}, "may not build"),
        ({"type": "MaskRCNN", "neck": [{"a": ({"type": "subprocess.run"},)}]}, r"model\.neck\[0\]\.a\[0\]\.type"),
        # Names
        ({"_scope_": "antigravity", "type": "ReLU"}, "_scope_ is 'antigravity'; expected one of"),
        ({"_scope_": ["mmdet"]}, "_scope_ is a list"),
        ({"_delete_": True}, "_delete_ is no name of an argument"),
        ({"__class__": 1}, "no name of an argument"),
        ({"a b": 1}, "no name of an argument"),
        ({1: 2}, "no name of an argument"),
        # Paths, addresses and code
        *(
            ({"type": "ReLU", "name": text}, "may hold no path, address or code")
            for text in (
                "hf-hub:someone/model", "hf_hub:someone/model", "local-dir:models", "http://x", "torchvision://resnet50",
                "/etc/passwd", "../weights", "~", "C:x", "weights.pth", "weights.pkl", ".", "a\\b", "a\nb", "os.system",
                "__import__", "exit()", "exit('x')", 'x"', "$HOME", "x" * 1000,
            )
        ),
        # Values and sizes
        ({"a": torch.zeros(1)}, "model.a is a Tensor; expected plain values"),
        ({"a": b"x"}, "is a bytes"),
        ({"a": {1, 2}}, "is a set"),
        ({"a": 10**9}, "beyond 100000"),
        ({"test_cfg": {"size": (100, 9000)}}, r"size\[1\] is 9000; expected at most 8192 pixels"),
        ({"pad_size_divisor": 10_000}, "expected at most 8192 pixels"),
        ([{"scale_factor": 5}, {"scale_factor": (4.0, 1)}], r"enlarged 20 times; expected at most 16 times"),
        ({"scale_factor": float("inf")}, "enlarged inf times"),
        (nested(1, MAX_DEPTH + 1), f"more than {MAX_DEPTH} levels"),
        (nested(1, 100_000), f"more than {MAX_DEPTH} levels"),
        ([0] * MAX_VALUES, f"more than {MAX_VALUES} values"),
    ]
)  # fmt: skip


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_what_is_refused(case: int) -> None:
    value, told = REFUSED[case]
    with pytest.raises(CheckpointError, match=told) as caught:
        checked(value, "x.pth: meta.model", KNOWN, enlarged=16)
    assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)


def test_values_that_share_their_parts_are_counted_each_time() -> None:
    """Thirty nested lists of ten references each are small in a file, and 10**30 values when walked through."""
    value = [1]
    for _ in range(30):
        value = [value] * 10
    with pytest.raises(CheckpointError, match="more than"):
        checked(value, "x.pth: meta.model", KNOWN)


def test_weights_kept_elsewhere_are_dropped() -> None:
    """A training that started from a file has its path in the config; what it learnt is in the checkpoint."""
    path = {"type": "Pretrained", "checkpoint": "/home/someone/classifier.pth"}
    value = {
        "type": "MaskRCNN",
        "pretrained": True,
        "backbone": {"init_cfg": path, "depth": 3},
        "checkpoint_path": "x.pth",
    }
    assert checked(value, "x.pth: meta.model", KNOWN) == {"type": "MaskRCNN", "backbone": {"depth": 3}}


@pytest.mark.parametrize(
    "value",
    [
        {"type": "MaskRCNN", "_scope_": "mmdet", "rates": (0.1, -1, None, True, float("inf"))},
        {"name": "resnet50.a1_in1k", "scan_order": ["windows(4)", "hilbert"]},
        {"type": "Resize", "interpolation": "bicubic", "auto_augment": "rand-m9-mstd0.5-inc1"},
        {"meta_keys": ("img_id", "scale_factor"), "order": "windows(4)", "text": ""},
    ],
)
def test_what_is_let_through(value: object) -> None:
    assert checked(copy.deepcopy(value), "x.pth: meta.model", KNOWN) == value


def classifier(**changes: object) -> dict:
    """A valid checkpoint with some changes."""
    meta = {"backbone": {"name": "test_vit"}, "transform": {"type": "TimmTransform", "input_size": 32}}
    meta |= {"dataset_meta": {"classes": ["a/b", "c: \x1b[2J"]}, "scope": "mmengine"} | changes
    return {"meta": meta, "message_hub": {}, "state_dict": {"weight": torch.zeros(1)}}


def test_a_sound_description() -> None:
    described = describe(classifier(), "x.pth")
    assert described.backbone == {"name": "test_vit"} and described.classes == ("a/b", "c: ?[2J")
    assert describe(classifier(backbone={"model_name": "test_vit"}), "older.pth").backbone == {"name": "test_vit"}
    assert describe(classifier(dataset_meta={"palette": "random"}), "x.pth").palette is None
    assert describe(classifier(dataset_meta={"palette": [[0, 1, 2]]}), "x.pth").palette == ((0, 1, 2),)


@pytest.mark.parametrize(
    "changes",
    [
        {"scope": "antigravity"},
        {"scope": ["mmdet"]},
        {"backbone": []},
        {"backbone": {"name": 3}},
        {"backbone": {"name": "hf-hub:someone/model"}},
        {"backbone": {"name": "test_vit", "act_layer": {"type": "ReLU"}}},
        {"transform": None},
        {"transform": {"type": "AlbumentationsTransform", "transforms": [{"type": "load", "filepath": "x"}]}},
        {"dataset_meta": [1]},
        {"dataset_meta": {"classes": "abc"}},
        {"dataset_meta": {"classes": [1]}},
        {"dataset_meta": {"palette": [[1]]}},
        {"dataset_meta": {"palette": [["a", 1, 2]]}},
        {"backbone": None, "scope": "mmdet", "model": None, "pipeline": []},
        {"backbone": None, "scope": "mmengine"},
        {"backbone": None, "scope": "mmdet", "model": {"depth": 1}, "pipeline": []},
        {"backbone": None, "scope": "mmdet", "model": {"depth": 1}, "pipeline": [1]},
    ],
    ids=str,
)
def test_descriptions_of_another_shape(changes: dict) -> None:
    with pytest.raises(CheckpointError, match=r"^x\.pth: "):
        describe(classifier(**changes), "x.pth")


def no_network(*_: object) -> None:
    raise AssertionError("the network was contacted")


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": {"name": "hf-hub:timm/test_vit.r160_in1k"}},
        {"backbone": {"name": "local-dir:models"}},
        {"backbone": {"name": "test_vit", "depth": "deep"}},
        {"backbone": {"name": "test_vit", "img_size": -32}},
        {"backbone": {"name": "test_vit", "no_such": 1}},
        {"transform": {"type": "TimmTransform", "input_size": "large"}},
        {"transform": {"type": "TimmTransform", "input_size": -3}},
        {"transform": {"type": "TimmTransform", "input_size": 3}},
        {"transform": {"type": "TimmTransform", "input_size": 100_000}},
        {"transform": {"type": "TimmTransform", "input_size": 32, "crop_pct": 1e-4}},
        {"transform": {"type": "TimmTransform", "input_size": 32, "crop_pct": float("nan")}},
        {"transform": {"type": "TimmTransform", "input_size": (3, 8000, 8000), "crop_mode": "squash", "crop_pct": 0.1}},
        {"transform": {"type": "TimmTransform", "input_size": 32, "naflex": True, "patch_size": 8000}},
        {"backbone": None, "scope": "mmdet", "model": {"type": "MaskRCNN"},
         "pipeline": [{"type": "Resize", "scale": (100_000, 100_000)}]},
        {"backbone": None, "scope": "mmdet", "model": {"type": "MaskRCNN"},
         "pipeline": [{"type": "Resize", "scale_factor": 9.0}, {"type": "Resize", "scale_factor": 9.0}]},
        {"backbone": None, "scope": "mmdet", "model": {"type": "os.system", "command": "touch ran"}, "pipeline": []},
        {"backbone": None, "scope": "mmdet", "model": {"type": "antigravity"}, "pipeline": []},
        {"backbone": None, "scope": "mmdet", "model": {"type": "BertModel", "name": "x"}, "pipeline": []},
        {"backbone": None, "scope": "mmdet", "model": {"type": "MaskRCNN"}, "pipeline": [{"type": "builtins.print"}]},
        {"backbone": None, "scope": "mmdet", "pipeline": [],
         "model": {"type": "CameraMotionCompensation", "warp_mode": "exit()"}},
        {"backbone": None, "scope": "mmseg", "pipeline": [],
         "model": {"type": "EncoderDecoder", "backbone": {"type": "x"}}},
    ],
    ids=lambda changes: str(changes)[:80],
)  # fmt: skip
def test_a_strangers_file_is_one_sentence(changes: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mmdet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    torch.save(classifier(**changes), "stranger.pth")
    with pytest.raises((CheckpointError, ConfigError), match=r"stranger\.pth|test_vit") as caught:
        load_predictor(None, Path("stranger.pth"))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["stranger.pth"]


def test_a_giant_is_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    """16,000 channels in a file of a few kilobytes: the first block alone would take gigabytes."""
    torch.save(classifier(backbone={"name": "vim_tiny", "depth": 1, "embed_dim": 16_000}), tmp_path / "giant.pth")
    with pytest.raises(CheckpointError, match=r"giant\.pth does not fit Vim"):
        load_predictor(None, tmp_path / "giant.pth")


def test_detectors_and_segmentors_are_no_classifiers() -> None:
    changes = {"backbone": None, "scope": "mmseg", "model": {"type": "EncoderDecoder"}, "pipeline": []}
    with pytest.raises(CheckpointError, match=r"x\.pth: it is of a detector or segmentor; expected a classif"):
        describe(classifier(**changes), "x.pth")


@pytest.mark.parametrize("name", ["configs/detection/x.py", "./epoch_30.pth", "/nowhere/x.pth", "local-dir:nowhere"])
def test_paths_are_no_names_of_models(name: str) -> None:
    with pytest.raises(ConfigError, match=r"is a path; expected the name of a model|cannot be had .*nowhere"):
        create_model(name)
