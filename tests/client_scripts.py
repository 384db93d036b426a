"""Checks of client_checks.py that are run by hand: timm's own scripts, and OpenMMLab's other packages.

timm's scripts are not in its package. TIMM_REPOSITORY names a folder with them, a checkout of its repository.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import timm
import torch
from client_checks import CLASS_COUNT, ROOT, SIDE, Kind, client, images, small

from vssm.data import ensure_shapes

SCRIPTS = Path(os.environ.get("TIMM_REPOSITORY", "/nonexistent"))


def commit() -> str:
    command = ["git", "-C", str(SCRIPTS), "rev-parse", "--short=7", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def script(name: str, what: str) -> Callable:
    """A client that is a script of timm's, tried with its package of this environment."""
    return client(
        "timm",
        f"`python -m vssm {name}.py`: {what}",
        slow=True,
        is_there=(SCRIPTS / f"{name}.py").is_file,
        of=lambda: f", script of {commit()}",
    )


def run(name: str, folder: Path, *arguments: str) -> str:
    """Run a script of timm's in a folder; what it has to say."""
    command = [sys.executable, "-m", "vssm", str(SCRIPTS / f"{name}.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    environment["PYTHONPATH"] += f"{os.pathsep}{os.environ['PYTHONPATH']}" if "PYTHONPATH" in os.environ else ""
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    if done.returncode:
        raise RuntimeError(f"{name}.py: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


@cache
def shapes() -> Path:
    return ensure_shapes(tempfile.mkdtemp(), train=20, val=10, image_size=SIDE)


def model_arguments(kind: Kind) -> list[str]:
    return ["--model", kind[0], "--num-classes", str(CLASS_COUNT), "--img-size", str(SIDE), "-b", "5",
            "--device", "cpu", "--model-kwargs", *(f"{name}={value!r}" for name, value in kind[1].items())]  # fmt: skip


def weights(kind: Kind, folder: Path) -> Path:
    file = folder / "weights.pth"
    torch.save(small(kind).state_dict(), file)
    return file


@script("validate", "a checkpoint, on the embedded set")
def validate(kind: Kind) -> None:
    folder = Path(tempfile.mkdtemp())
    data = ["--data-dir", str(shapes()), "--split", "val", "-j", "0", "--no-prefetcher"]
    told = run("validate", folder, *data, "--checkpoint", str(weights(kind, folder)), *model_arguments(kind))
    assert '"top1"' in told


@script("inference", "a checkpoint, on the embedded set")
def inference(kind: Kind) -> None:
    folder = Path(tempfile.mkdtemp())
    data = ["--data-dir", str(shapes() / "val"), "-j", "0", "--results-dir", str(folder)]
    run("inference", folder, *data, "--checkpoint", str(weights(kind, folder)), *model_arguments(kind))
    (table,) = folder.glob("*.csv")
    with table.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 10


@script("benchmark", "inference and training")
def benchmark(kind: Kind) -> None:
    few = ["--num-warm-iter", "1", "--num-bench-iter", "10"]
    told = run("benchmark", Path(tempfile.mkdtemp()), *few, *model_arguments(kind))
    assert "infer_samples_per_sec" in told and "train_samples_per_sec" in told


@script("train", "two epochs on the embedded set, resumed after the first")
def train(kind: Kind) -> None:
    folder = Path(tempfile.mkdtemp())
    data = ["--data-dir", str(shapes()), "--val-split", "val", "-j", "0", "--no-prefetcher", "--no-aug"]
    data += ["--output", str(folder), "--experiment", "try", "--warmup-epochs", "0", *model_arguments(kind)]
    run("train", folder, *data, "--epochs", "1")
    run("train", folder, *data, "--epochs", "2", "--resume", str(folder / "try/last.pth.tar"))
    lines = (folder / "try/summary.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in lines if not line.startswith("epoch")] == ["0", "1"]


@script("onnx_export", "the whole model")
def onnx_export(kind: Kind) -> str | None:
    folder = Path(tempfile.mkdtemp())
    torch.save(timm.create_model(kind[0], num_classes=CLASS_COUNT).state_dict(), folder / "weights.pth")
    arguments = ["--model", kind[0], "--checkpoint", "weights.pth", "--num-classes", str(CLASS_COUNT)]
    try:
        run("onnx_export", folder, "model.onnx", *arguments, "--check-forward")
    except RuntimeError as error:
        if "aten::rms_norm" in str(error):  # it asks for torch's older exporter, which does not know these norms
            return str(error).partition("UnsupportedOperatorError: ")[2]
        raise
    assert (folder / "model.onnx").is_file()
    return None


@client("mmpretrain", "ImageClassifier with VSSMBackbone, one training step", slow=True)
def mmpretrain(kind: Kind) -> None:
    from mmpretrain.registry import MODELS
    from mmpretrain.structures import DataSample

    import vssm.mm  # noqa: F401  registers the backbone

    last = {"type": "VSSMBackbone", "name": kind[0], "out_indices": [-1], **kind[1]}
    width = MODELS.build(last).channels[-1]
    head = {"type": "LinearClsHead", "num_classes": CLASS_COUNT, "in_channels": width}
    neck = {"type": "GlobalAveragePooling"}
    classifier = MODELS.build({"type": "ImageClassifier", "backbone": last, "neck": neck, "head": head})
    samples = [DataSample().set_gt_label(label) for label in (1, 3)]
    classifier.loss(images(2), samples)["loss"].backward()
    assert all(weight.grad is not None for weight in classifier.parameters())
    assert len(classifier.eval().predict(images(2))) == 2


@client("mmpose", "TopdownPoseEstimator with VSSMBackbone, losses and heat maps", slow=True)
def mmpose(kind: Kind) -> None:
    from mmpose.registry import MODELS

    import vssm.mm  # noqa: F401  registers the backbone

    last = {"type": "VSSMBackbone", "name": kind[0], "out_indices": [-1], **kind[1]}
    backbone = MODELS.build(last)
    head = {"type": "HeatmapHead", "in_channels": backbone.channels[-1], "out_channels": 17,
            "loss": {"type": "KeypointMSELoss", "use_target_weight": True}}  # fmt: skip
    pose = MODELS.build({"type": "TopdownPoseEstimator", "backbone": last, "head": head})
    maps = pose(images(2), None, mode="tensor")
    assert maps.shape[:2] == (2, 17)
    maps.square().mean().backward()
    assert all(weight.grad is not None for weight in pose.backbone.parameters())
