"""Checkpoints that hold tensors and plain values only, are written whole or not at all, and fit or are refused."""

from pathlib import Path

import torch
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from vssm.errors import TrainingError
from vssm.inference.saved import latest_checkpoint, to_plain

# Values kept of each logged scalar: more than any logging window, and little beside the weights.
HISTORY = 10_000


@HOOKS.register_module()
class PlainCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, made safe to load and safe to interrupt.

    - What mmengine logs (HistoryBuffer, which pickles functions) is stored as tensors, so that ``torch.load`` reads
      the file with ``weights_only=True`` and an empty allow-list.
    - A checkpoint with weights that are not finite is never written over the last good one.
    - An outdated checkpoint is removed only after its successor is on the disk; mmengine removes it before.

    Arguments are those of mmengine's ``CheckpointHook``.
    """

    def before_train(self, runner: Runner) -> None:
        """Let the hook's removals wait for `_remove_outdated`."""
        super().before_train(runner)
        self.file_backend = _RemoveLater()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Save by iterations, if the config says so."""
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        self._remove_outdated()

    def after_train_epoch(self, runner: Runner) -> None:
        """Save by epochs, if the config says so."""
        super().after_train_epoch(runner)
        self._remove_outdated()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        """Save the best checkpoint."""
        super().after_val_epoch(runner, metrics)
        if isinstance(self.file_backend, _RemoveLater):
            self._remove_outdated()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check the weights, and turn what is not a plain value into one."""
        broken = [name for name, value in checkpoint["state_dict"].items() if not _is_finite(value)]
        if broken:
            raise TrainingError(
                f"the weights are not finite after step {runner.iter} ({len(broken)} tensors, first {broken[0]}): "
                f"no checkpoint written; {last_good(runner)}"
            )
        model = getattr(runner.model, "module", runner.model)
        evaluation = runner.cfg.get("test_dataloader") or runner.cfg.get("val_dataloader") or {}
        dataset = evaluation.get("dataset", {})
        # What tools/predict.py builds from; the config beside it is code, which is not run.
        checkpoint["meta"].update(
            backbone=getattr(model, "arguments", None),
            transform=to_plain(dataset.get("transform")),
            scope=runner.cfg.get("default_scope") or "mmengine",
            model=to_plain(runner.cfg.model),
            pipeline=to_plain(dataset.get("pipeline")),
            dataset_meta=to_plain(checkpoint["meta"].get("dataset_meta")),
        )
        hub = checkpoint["message_hub"]
        hub["runtime_info"] = to_plain(hub["runtime_info"])
        hub["log_scalars"] = {name: _history_to_plain(buffer) for name, buffer in hub["log_scalars"].items()}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """The inverse of `before_save_checkpoint`."""
        scalars = checkpoint.get("message_hub", {}).get("log_scalars", {})
        for name, plain in scalars.items():
            scalars[name] = HistoryBuffer(plain["values"].tolist(), plain["counts"].tolist(), plain["max_length"])

    def _remove_outdated(self) -> None:
        best = getattr(self, "best_ckpt_path", None)
        self.file_backend.remove_all(keep={self.last_ckpt, best})


class _RemoveLater(LocalBackend):
    """The local disk, whose ``remove`` waits until ``remove_all``."""

    def __init__(self) -> None:
        super().__init__()
        self.outdated: list[str] = []

    def remove(self, filepath: str) -> None:
        self.outdated.append(str(filepath))

    def remove_all(self, keep: set[str | None]) -> None:
        for path in self.outdated:
            if path not in keep:
                Path(path).unlink(missing_ok=True)
        self.outdated.clear()


def _is_finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def _history_to_plain(buffer: HistoryBuffer) -> dict:
    values, counts = buffer.data
    return {
        "values": torch.as_tensor(values[-HISTORY:], dtype=torch.float64),
        "counts": torch.as_tensor(counts[-HISTORY:], dtype=torch.float64),
        "max_length": buffer.max_length,
    }


def last_good(runner: Runner) -> str:
    """Half a sentence that says where the last good checkpoint of a training is."""
    path = latest_checkpoint(runner.work_dir)
    return f"the last good checkpoint is {path}" if path else "no checkpoint had been written before"
