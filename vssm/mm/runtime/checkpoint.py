"""Checkpoints that hold tensors and plain values only, are written whole or not at all, and fit or are refused."""

from pathlib import Path

import torch
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook, EarlyStoppingHook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from vssm.errors import TrainingError
from vssm.files import write_atomically
from vssm.inference.saved import INTERRUPTED, NOTE, classes_of, latest_checkpoint, to_plain
from vssm.mm.runtime.distributed import unwrap
from vssm.mm.runtime.metrics import check_asked_scores
from vssm.mm.runtime.resume import GRADIENTS, RECORD, TrainingRecord, pending_gradients
from vssm.models import CheckpointError

# Values of each logged scalar: more than any logging window, and little beside the weights. Mmengine's limit is a
# million, and it copies all of them at every step.
HISTORY = 10_000
# In a checkpoint's counters: the step of the last validation whose scores are in them. mmengine logs what begins "val".
VALIDATED = "last_validation"
# What mmengine's MessageHub saves.
HUB = ("log_scalars", "runtime_info", "resumed_keys")


@HOOKS.register_module()
class PlainCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, whose files are safe to load and survive interruptions.

    - Logged values (mmengine's HistoryBuffer, which pickles functions) are saved as tensors, so that ``torch.load``
      reads the file with ``weights_only=True`` and an empty allow-list.
    - Weights that are not finite are never saved.
    - An outdated checkpoint is removed only after the next one is on the disk; mmengine removes it before.
    - A validation whose scores are not in the checkpoint is repeated when the training goes on.

    Arguments are those of mmengine's ``CheckpointHook``.
    """

    def before_train(self, runner: Runner) -> None:
        """Delay the hook's removals until `_remove_outdated`, and validate if the checkpoint has not been."""
        super().before_train(runner)
        self.file_backend = _RemoveLater(Path(self.out_dir))
        self._newest = self.last_ckpt
        if is_main_process():
            for unfinished in Path(self.out_dir).glob(".*.pth.part"):  # of a training that was killed while it wrote
                unfinished.unlink(missing_ok=True)
        _count_validations(runner)
        due = runner.val_loop is not None and getattr(runner.train_loop, "validation_is_due", False)
        if due and runner.message_hub.get_info(VALIDATED, None) != runner.iter:
            runner.logger.info(f"the checkpoint is of before the validation of step {runner.iter}: validating now")
            runner.val_loop.run()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Shorten the logs, and save by iterations, if the config says so."""
        for history in runner.message_hub.log_scalars.values():
            history.max_length = HISTORY  # from its next value on
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        self._remove_outdated()

    def after_train_epoch(self, runner: Runner) -> None:
        """Save by epochs, if the config says so."""
        super().after_train_epoch(runner)
        self._remove_outdated()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        """Save the best checkpoint.

        Raises:
            ConfigError: the score that tells which is the best is none of the evaluation's. Where its metrics are
                known, that is told before the first step, see `vssm.mm.tasks.scoring`.
        """
        check_asked_scores(runner, metrics, f"; {last_good(runner)}")
        runner.message_hub.update_info(VALIDATED, runner.iter)
        super().after_val_epoch(runner, metrics)  # which saves the last checkpoint again where this one is the best
        if isinstance(getattr(self, "file_backend", None), _RemoveLater):
            self._remove_outdated()

    def save_interrupted(self, runner: Runner, step: int) -> Path:
        """Save a training that stops after `step`. The next checkpoint replaces the file."""
        path = Path(self.out_dir) / INTERRUPTED
        meta = {"epoch": runner.epoch, "iter": step}
        runner.save_checkpoint(self.out_dir, INTERRUPTED, meta=meta, by_epoch=False)
        if is_main_process():
            write_atomically(Path(runner.work_dir) / NOTE, str(path))
        return path

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check the weights, and convert everything else to plain values."""
        broken = [name for name, value in checkpoint["state_dict"].items() if not _is_finite(value)]
        if broken:
            raise TrainingError(
                f"the weights are not finite after step {runner.iter} ({len(broken)} tensors, first {broken[0]}): "
                f"no checkpoint written; {last_good(runner)}"
            )
        model = unwrap(runner.model)
        evaluation = runner.cfg.get("test_dataloader") or runner.cfg.get("val_dataloader") or {}
        dataset = evaluation.get("dataset", {})
        # What tools/predict.py builds from. The config is saved too, as text that is never run.
        meta = checkpoint["meta"]
        meta.update(
            {RECORD: TrainingRecord.of(runner, meta["epoch"], meta["iter"]).plain()},
            backbone=getattr(model, "arguments", None),
            transform=to_plain(dataset.get("transform")),
            scope=runner.cfg.get("default_scope") or "mmengine",
            model=to_plain(runner.cfg.model),
            pipeline=to_plain(dataset.get("pipeline")),
            dataset_meta=to_plain(meta.get("dataset_meta")),
        )
        meta["classes"] = classes_of(checkpoint)
        if "optimizer" in checkpoint:
            checkpoint[GRADIENTS] = pending_gradients(model)
        hub = checkpoint["message_hub"]
        hub["runtime_info"] = to_plain(hub["runtime_info"])
        hub["log_scalars"] = {name: _history_to_plain(buffer) for name, buffer in hub["log_scalars"].items()}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """The inverse of `before_save_checkpoint`."""
        scalars = checkpoint.get("message_hub", {}).get("log_scalars", {})
        for name, plain in scalars.items():
            scalars[name] = HistoryBuffer(plain["values"].tolist(), plain["counts"].tolist(), plain["max_length"])

    def _remove_outdated(self) -> None:
        saved = self.last_ckpt, getattr(self, "best_ckpt_path", None)
        if self.last_ckpt != self._newest:
            self._newest = self.last_ckpt
            self.file_backend.remove(str(Path(self.out_dir) / INTERRUPTED))
        self.file_backend.remove_all(keep={Path(path).resolve() for path in saved if path})


def _count_validations(runner: Runner) -> None:
    """Let mmengine's EarlyStoppingHook, which is not saved, count the validations of a training that goes on."""
    for hook in runner.hooks:
        history = runner.message_hub.log_scalars.get(f"val/{getattr(hook, 'monitor', None)}")
        if isinstance(hook, EarlyStoppingHook) and history is not None:
            for score in history.data[0].tolist():
                runner.train_loop.stop_training = hook._check_stop_condition(score)[0]


class _RemoveLater(LocalBackend):
    """The local disk, whose ``remove`` waits until ``remove_all``.

    mmengine takes the path of the best checkpoint from the file that a training resumes from, and removes what is
    there, a whole folder too. Here only files in the training's own folder are removed.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder.resolve()
        self.outdated: list[Path] = []

    def remove(self, filepath: str) -> None:
        self.outdated.append(Path(filepath).resolve())

    def rmtree(self, dir_path: str) -> None:
        """Nothing: checkpoints are files."""

    def remove_all(self, keep: set[Path]) -> None:
        for path in self.outdated:
            if path not in keep and path.parent == self.folder:
                path.unlink(missing_ok=True)
        self.outdated.clear()


def save_interrupted(runner: Runner, step: int) -> Path | None:
    """Save a training that a signal stops; None if its config saves no checkpoints."""
    hooks = (hook for hook in runner.hooks if isinstance(hook, PlainCheckpointHook))
    hook = next(hooks, None)
    return None if hook is None else hook.save_interrupted(runner, step)


def check_bookkeeping(checkpoint: dict, path: str | Path) -> None:
    """Refuse a checkpoint whose counters and logs mmengine cannot go on from.

    Args:
        checkpoint: of `PlainCheckpointHook`. ``meta.config`` is dropped: mmengine would run it as Python.
        path: of the file, for the error.

    Raises:
        CheckpointError: names the entry.
    """
    meta, hub = checkpoint["meta"], checkpoint["message_hub"]
    meta.pop("config", None)
    parts = {name: hub.get(name) if isinstance(hub, dict) else None for name in HUB}
    counts = [meta.get("epoch"), meta.get("iter"), meta.get("seed", 0) or 0]
    sound = {"meta.epoch, meta.iter and meta.seed": all(isinstance(count, int) and count >= 0 for count in counts)}
    sound |= {f"message_hub.{name}": isinstance(part, dict) for name, part in parts.items()}
    if all(sound.values()):
        ids = parts["runtime_info"].get("keep_ckpt_ids", [])
        histories = parts["log_scalars"].values()
        sound["message_hub.runtime_info.keep_ckpt_ids"] = isinstance(ids, list) and all(type(i) is int for i in ids)
        sound["message_hub.log_scalars"] = all(map(_is_history, histories))
    for place, right in sound.items():
        if not right:
            raise CheckpointError(f"{path}: {place} is not what tools/train.py writes; nothing was loaded")


def _is_history(plain: object) -> bool:
    keys = ("values", "counts", "max_length")
    if not isinstance(plain, dict) or tuple(plain) != keys or not isinstance(plain["max_length"], int):
        return False
    values, counts = plain["values"], plain["counts"]
    tensors = isinstance(values, Tensor) and isinstance(counts, Tensor)
    return tensors and values.ndim == 1 and values.shape == counts.shape


def _is_finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def _history_to_plain(buffer: HistoryBuffer) -> dict:
    values, counts = buffer.data
    return {
        "values": torch.as_tensor(values, dtype=torch.float64),
        "counts": torch.as_tensor(counts, dtype=torch.float64),
        "max_length": buffer.max_length,
    }


def last_good(runner: Runner) -> str:
    """End of a sentence that says where the last good checkpoint of a training is."""
    path = latest_checkpoint(runner.work_dir)
    return f"the last good checkpoint is {path}" if path else "no checkpoint had been written before"
