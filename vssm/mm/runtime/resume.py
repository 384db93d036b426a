"""Resumes a training from a checkpoint: the config decides, and what differs from the saved training is logged."""

import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from mmengine.dist import get_world_size
from mmengine.hooks import CheckpointHook
from mmengine.optim import ReduceOnPlateauParamScheduler, _ParamScheduler
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor, nn

from vssm.errors import ConfigError
from vssm.inference.saved import intact_training
from vssm.mm.runtime.distributed import unwrap
from vssm.mm.runtime.metrics import asked_scores
from vssm.models import CheckpointError

# The place of the record in a checkpoint's `meta`.
RECORD = "training"
# The gradients of an accumulation that had not yet changed the weights, in a checkpoint.
GRADIENTS = "gradients"


@dataclass(frozen=True)
class TrainingRecord:
    """What a checkpoint says of its training, so that another one can tell what it changes.

    Args:
        images: of the data set.
        images_per_step: of all processes.
        processes: their number.
        accumulation: steps whose gradients are summed before the weights change.
        steps_per_epoch: 0 for a training that counts steps.
        taken: batches taken from the data, since the start of the epoch or, if steps are counted, of the training.
        optimizer: name of its class.
    """

    images: int
    images_per_step: int
    processes: int
    accumulation: int
    steps_per_epoch: int
    taken: int
    optimizer: str

    @classmethod
    def of(cls, runner: Runner, epoch: int = 0, step: int = 0) -> "TrainingRecord":
        """The record of a training after so many epochs and steps."""
        loop = runner.train_loop
        loader, wrapper = loop.dataloader, runner.optim_wrapper
        by_steps = isinstance(loop, IterBasedTrainLoop)
        per_process = getattr(loader.batch_sampler, "batch_size", None) or loader.batch_size or 1
        return cls(
            images=len(loader.dataset),
            images_per_step=per_process * get_world_size(),
            processes=get_world_size(),
            accumulation=getattr(wrapper, "_accumulative_counts", 1),
            steps_per_epoch=0 if by_steps else len(loader),
            taken=getattr(loop, "taken", step) if by_steps else step - epoch * len(loader),
            optimizer=type(wrapper.optimizer).__name__,
        )

    @classmethod
    def read(cls, meta: dict, path: str | Path) -> "TrainingRecord | None":
        """The record in a checkpoint; None in one of an earlier version.

        Raises:
            CheckpointError: it is not what this class writes.
        """
        plain = meta.get(RECORD)
        if plain is None:
            return None
        types = {field.name: str if field.name == "optimizer" else int for field in fields(cls)}
        sound = isinstance(plain, dict) and set(plain) == set(types)
        if not sound or not all(type(plain[name]) is kind for name, kind in types.items()):
            raise CheckpointError(f"{path}: meta.{RECORD} is not what tools/train.py writes; nothing was loaded")
        record = cls(**plain)
        if min(value for value in plain.values() if isinstance(value, int)) < 0 or record.images_per_step < 1:
            raise CheckpointError(f"{path}: meta.{RECORD} has impossible numbers; nothing was loaded")
        return record

    def changes(self, now: "TrainingRecord") -> list[str]:
        """What differs in a training that goes on from this one, in words."""
        names = {
            "images": "images of the data set",
            "images_per_step": "images per step",
            "processes": "processes",
            "accumulation": "steps of gradient accumulation",
        }
        values = [(name, words, getattr(self, name), getattr(now, name)) for name, words in names.items()]
        return [f"{before} {words}, now {after}" for name, words, before, after in values if before != after]

    def plain(self) -> dict:
        """For the checkpoint."""
        return asdict(self)


def check_complete(checkpoint: dict, path: str | Path) -> None:
    """Refuse to resume from a file that lacks a part of the training.

    Args:
        checkpoint: the content of the file.
        path: the file, for the error. A checkpoint beside it that is whole is offered.

    Raises:
        CheckpointError: names what lacks, and says how to start from weights instead.
    """
    parts = {"message_hub": "counters", "optimizer": "the state of the optimiser"}
    missing = [words for name, words in parts.items() if not isinstance(checkpoint.get(name), dict)]
    if not missing:
        return
    other = intact_training(Path(path).parent, besides=Path(path))
    instead = f"resume from {other}, or " if other else ""
    raise CheckpointError(
        f"{path} lacks {' and '.join(missing)}, so the training cannot go on from it: {instead}start a new training "
        f"from its weights, without --resume: --cfg-options load_from={path}"
    )


def resume_training(runner: Runner, checkpoint: dict, path: str | Path) -> None:
    """Set counters, optimiser, schedules and random numbers as if the config had trained up to this point.

    Rates and schedules are the config's, from the checkpoint come only the counters and the optimiser's sums. Where an
    epoch has another number of steps now, the training goes on at the same part of the epoch.

    Args:
        runner: its weights are loaded, everything is built.
        checkpoint: a checkpoint of `PlainCheckpointHook`, with the optimiser's state.
        path: the file, for errors.

    Raises:
        CheckpointError: the optimiser's state does not fit, or the classes are others.
    """
    meta, loop = checkpoint["meta"], runner.train_loop
    before, now = TrainingRecord.read(meta, path), TrainingRecord.of(runner)
    if before is not None and bool(before.steps_per_epoch) != bool(now.steps_per_epoch):
        raise ConfigError(f"{path} is of a training that counts epochs, and train_cfg counts steps, or the reverse")
    _check_classes(meta, loop.dataloader.dataset, path)
    _set_seed(runner, meta.get("seed"))
    _set_counters(loop, meta, before, now)
    loop._decide_current_val_interval()
    schedulers = runner.param_schedulers if isinstance(runner.param_schedulers, list) else []
    plateau = any(isinstance(each, ReduceOnPlateauParamScheduler) for each in schedulers)
    _load_optimizer(runner, checkpoint["optimizer"], before, path, rates_of_file=plateau)
    unchanged = before is not None and before == replace(now, taken=before.taken)
    _load_gradients(runner, checkpoint.get(GRADIENTS), unchanged, path)
    if plateau:  # depends on scores, which cannot be had again
        for scheduler, state in zip(schedulers, checkpoint.get("param_schedulers") or (), strict=False):
            scheduler.load_state_dict(state)
    else:
        replay(schedulers, loop.epoch, loop.iter, now.steps_per_epoch)
    runner.message_hub.load_state_dict(checkpoint["message_hub"])
    for change in before.changes(now) if before else ():
        runner.logger.warning(f"resumed: the checkpoint's training had {change}")
    rate = max(group["lr"] for group in runner.optim_wrapper.optimizer.param_groups)
    point = f"step {loop.iter} of {loop.max_iters}"
    if now.steps_per_epoch:
        point = f"epoch {loop.iter / now.steps_per_epoch:g} of {loop.max_epochs} ({point})"
    runner.logger.info(f"resumed at {point}, with the config's schedules: the rate is {rate:.3e}")
    if loop.iter >= loop.max_iters:
        runner.logger.warning("nothing is left to train: to go on, ask for more epochs or steps in train_cfg")


def replay(schedulers: list[_ParamScheduler], epochs: int, steps: int, steps_per_epoch: int) -> None:
    """Take freshly built schedulers through a training up to a point.

    mmengine's schedulers compute each value from the one before, so they have to be stepped in the training's order:
    about 10 s for 300 epochs of ImageNet.

    Args:
        schedulers: of one optimiser, after their first step, which mmengine makes on building them.
        epochs: that are complete.
        steps: since the start.
        steps_per_epoch: 0 for a training that counts steps.
    """
    by_step = [each for each in schedulers if not each.by_epoch]
    by_epoch = [each for each in schedulers if each.by_epoch]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of `scheduler.step")
        for step in range(1, steps + 1):
            for scheduler in by_step:
                scheduler.step()
            if steps_per_epoch and step % steps_per_epoch == 0 and step <= epochs * steps_per_epoch:
                for scheduler in by_epoch:
                    scheduler.step()


def check_ends(runner: Runner) -> None:
    """Say where validations begin after the training's end or schedules end before it, as when epochs are changed.

    Raises:
        ConfigError: a schedule counts epochs, and the training steps.
    """
    loop, schedulers = runner.train_loop, runner.param_schedulers or ()
    end = loop.max_iters if isinstance(loop, IterBasedTrainLoop) else loop.max_epochs
    late = runner.val_loop is not None and loop.val_begin > end
    if late:
        runner.logger.warning(
            f"train_cfg.val_begin is {loop.val_begin}, and the training ends at {end}: it is never validated"
        )
    for option, name in asked_scores(runner) if late or runner.val_loop is None else ():
        runner.logger.warning(f"{option} is {name!r}, and without a validation there are no scores: it does nothing")
    if isinstance(loop, IterBasedTrainLoop):  # one epoch, so what counts them waits for the end
        _check_units(runner, schedulers if isinstance(schedulers, list) else ())
    if not isinstance(schedulers, list) or not schedulers:
        return
    per_epoch = 1 if isinstance(loop, IterBasedTrainLoop) else len(loop.dataloader)
    last = max(each.end * (per_epoch if each.by_epoch else 1) for each in schedulers)
    if last < loop.max_iters:
        runner.logger.warning(
            f"the schedules of param_scheduler end at step {last} of {loop.max_iters}: after it the rate stays as it is"
        )


def _check_units(runner: Runner, schedulers: Iterable[_ParamScheduler]) -> None:
    for place, scheduler in enumerate(schedulers):
        if scheduler.by_epoch and not getattr(scheduler, "need_val_args", False):
            raise ConfigError(
                f"param_scheduler.{place} ({type(scheduler).__name__}) counts epochs, and train_cfg counts steps, so "
                "the rate would never change: expected by_epoch=False, with begin, end and T_max in steps, or "
                "convert_to_iter_based=True"
            )
    if any(isinstance(hook, CheckpointHook) and hook.by_epoch for hook in runner.hooks):
        runner.logger.warning(
            "default_hooks.checkpoint counts epochs, and train_cfg counts steps, so nothing to resume from is saved "
            "before the end: set its by_epoch=False, and its interval in steps"
        )


def _set_counters(loop: object, meta: dict, before: TrainingRecord | None, now: TrainingRecord) -> None:
    """Move the loop to the checkpoint's point."""
    loop._epoch, loop._iter = meta["epoch"], meta["iter"]
    if not now.steps_per_epoch:
        taken = loop._iter if before is None else before.taken
        loop.taken = taken if before is None else taken * before.images_per_step // now.images_per_step
        return
    if before is None:
        loop._iter = loop._epoch * now.steps_per_epoch
        return
    done = round(before.taken * now.steps_per_epoch / before.steps_per_epoch)
    loop._iter = loop._epoch * now.steps_per_epoch + min(done, now.steps_per_epoch)


def _set_seed(runner: Runner, seed: int | None) -> None:
    """Go on with the checkpoint's seed where the config has none; the order of the images depends on it too."""
    asked = runner._randomness_cfg.get("seed")
    if seed is None or seed == asked:
        return
    if asked is not None:
        runner.logger.warning(f"resumed: the checkpoint's training had the seed {seed}, now {asked}")
        return
    runner._seed = seed
    sampler = getattr(runner.train_loop.dataloader.batch_sampler, "sampler", None)
    if hasattr(sampler, "seed"):
        sampler.seed = seed


def _load_optimizer(
    runner: Runner, state: dict, before: TrainingRecord | None, path: str | Path, rates_of_file: bool
) -> None:
    """Load the optimiser's sums, but keep the options of its parameter groups."""
    wrapper = runner.optim_wrapper
    kind = type(wrapper.optimizer).__name__
    if before is not None and before.optimizer != kind:
        raise CheckpointError(
            f"{path} holds the state of {before.optimizer}, and the config's optimiser is {kind}: set "
            f"optim_wrapper.optimizer.type={before.optimizer}, or start from the weights without --resume: "
            f"--cfg-options load_from={path}"
        )
    options = [{key: value for key, value in group.items() if key != "params"} for group in wrapper.param_groups]
    try:
        wrapper.load_state_dict({key: value for key, value in state.items() if key != "base_param_settings"})
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the optimiser's state in {path} does not fit the config's optimiser: {error}; start from the weights "
            f"without --resume: --cfg-options load_from={path}"
        ) from error
    if not rates_of_file:
        for group, own in zip(wrapper.param_groups, options, strict=False):
            group.update(own)


def pending_gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradients that wait for the end of an accumulation, by name; none after a change of the weights."""
    return {name: value.grad.cpu() for name, value in model.named_parameters() if value.grad is not None}


def _load_gradients(runner: Runner, gradients: dict | None, same_training: bool, path: str | Path) -> None:
    """Go on in the middle of an accumulation; each of several processes has gradients of its own, which are lost."""
    if not gradients:
        return
    if not same_training or get_world_size() > 1:
        runner.logger.warning(
            "resumed in the middle of a gradient accumulation: the gradients of the steps since the last change of the "
            "weights are lost, as they are not saved for several processes or the training has changed"
        )
        return
    parameters = dict(unwrap(runner.model).named_parameters())
    for name, value in gradients.items() if isinstance(gradients, dict) else [(None, None)]:
        if not isinstance(value, Tensor) or name not in parameters or value.shape != parameters[name].shape:
            raise CheckpointError(f"{path}: the gradient of {name!r} does not fit the model")
        parameters[name].grad = value.to(parameters[name])


def classes_of_data(dataset: object) -> tuple[str, ...]:
    """The names of a data set's classes in the order of its labels; none where it does not know them."""
    return tuple((getattr(dataset, "metainfo", None) or {}).get("classes") or ())


def _check_classes(meta: dict, dataset: object, path: str | Path) -> None:
    """Compare the classes by name: labels are their numbers."""
    saved = (meta.get("dataset_meta") or {}).get("classes")
    own = classes_of_data(dataset)
    if saved and own and tuple(saved) != own:
        other = next((pair for pair in zip(saved, own, strict=False) if pair[0] != pair[1]), (len(saved), len(own)))
        raise ConfigError(
            f"{path} was trained on other classes than those of the data: {other[0]!r} there is {other[1]!r} here; "
            "set the same classes in the same order, or start from the weights without --resume"
        )
