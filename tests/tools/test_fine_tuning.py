"""Trains a classifier and then a segmentor that starts from it, by the README's commands."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmseg")
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TRAIN = CONFIGS.parent / "tools/train.py"
SMALL = dict(train=16, val=10, image_size=32)


def options(root: Path) -> list[str]:
    """A few small images, in this process, for a model of a few channels."""
    sizes = dict(SMALL, root=root)
    return [
        "model.backbone.dims=(8,16,32,64)",
        "model.backbone.depths=(1,1,1,1)",
        *(
            f"{split}_dataloader.{name}"
            for split in ("train", "val", "test")
            for name in ("num_workers=0", "batch_size=8", *(f"dataset.{key}={size}" for key, size in sizes.items()))
        ),
    ]


def test_segmentation_starts_from_our_own_classifier(run: Callable, tmp_path: Path) -> None:
    classifier = CONFIGS / "classification/vmamba/vmamba_demo_shapes.py"
    only = ["train_cfg.max_epochs=1", "train_cfg.val_interval=1"]
    done = run(TRAIN, classifier, "--work-dir", "classifier", "--cfg-options", *options(tmp_path), *only)
    assert done.returncode == 0, done.stderr
    trained = tmp_path / "classifier/epoch_1.pth"

    # At a rate of nought the weights stay what the segmentor started from.
    segmentor = CONFIGS / "segmentation/vmamba/upernet_vmamba_demo_shapes.py"
    start = ["model.backbone.init_cfg.type=Pretrained", f"model.backbone.init_cfg.checkpoint={trained}"]
    heads = ["model.decode_head.in_channels=[8,16,32,64]", "model.auxiliary_head.in_channels=32"]
    only = ["train_cfg.max_iters=2", "train_cfg.val_interval=2", "optim_wrapper.optimizer.lr=0.0"]
    only += ["model.data_preprocessor.size=(32,32)", "default_hooks.checkpoint.interval=2"]
    done = run(TRAIN, segmentor, "--work-dir", "segmentor", "--cfg-options", *options(tmp_path), *start, *heads, *only)
    assert done.returncode == 0, done.stderr
    assert "mIoU" in done.stdout + done.stderr

    before = torch.load(trained, weights_only=True)["state_dict"]
    after = torch.load(tmp_path / "segmentor/iter_2.pth", weights_only=True)["state_dict"]
    shared = {
        name: value for name, value in before.items() if not name.startswith(("backbone.head.", "backbone.norm."))
    }
    assert len(shared) > 50
    for name, value in shared.items():
        assert torch.equal(after[name.replace("backbone.", "backbone.model.", 1)], value), name
