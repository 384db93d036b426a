"""Whose fault an error is: which part of a config made what raised it.

mmdet, mmseg and mmengine take any value, and fail with it when it is first used: in a constructor, in a hook, or in a
layer at the first step. A traceback passes through the object that the config made; its name is what the user can mend.
"""

import logging
import re
import traceback
from collections.abc import Iterator
from types import FrameType

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from vssm.mm.runtime.distributed import unwrap

_logger = logging.getLogger(__name__)

# What is raised for values that cannot be used.
_OF_VALUES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
# The section of a config that is built by each method of the runner.
_SECTIONS = {
    "setup_env": "env_cfg",
    "build_visualizer": "visualizer",
    "build_log_processor": "log_processor",
    "build_model": "model",
    "register_default_hooks": "default_hooks",
    "register_custom_hooks": "custom_hooks",
    "build_train_loop": "train_cfg",
    "build_optim_wrapper": "optim_wrapper",
    "build_param_scheduler": "param_scheduler",
    "build_val_loop": "val_cfg",
    "build_test_loop": "test_cfg",
    "build_evaluator": "the evaluator",
    "build_dataloader": "the data loader",
}


def misused_part(error: BaseException) -> str | None:
    """One sentence that names the part of the config that raised an error when it was built or first used.

    The traceback goes into the log file.

    Args:
        error: as it was caught, outside of the runner.

    Returns:
        None for errors that are not about values, after the first step of a training, or in no part of a config.
    """
    if not isinstance(error, _OF_VALUES):
        return None
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    runner = next((found for frame in frames if isinstance(found := frame.f_locals.get("self"), Runner)), None)
    place = _used(frames, runner) or _built(frames)
    if place is None or getattr(runner, "has_trained", False):
        return None
    if logging.getLogger("vssm").handlers:  # the log file's; the terminal's leaves long texts out
        _logger.error("".join(traceback.format_exception(error)))
    return f"{place}: {_reason(error)}; correct its arguments in the config (the log file has the traceback)"


def _built(frames: list[FrameType]) -> str | None:
    """The section, and the class in it, that was being built."""
    section = next((_SECTIONS[name] for frame in reversed(frames) if (name := frame.f_code.co_name) in _SECTIONS), None)
    if section is None:
        return None
    kinds = [frame.f_locals.get("obj_cls") for frame in frames if frame.f_code.co_name == "build_from_cfg"]
    kind = getattr(kinds[-1], "__name__", None) if kinds else None
    return f"{section} cannot be built{f', {kind} refuses its arguments' if kind else ''}"


def _used(frames: list[FrameType], runner: Runner | None) -> str | None:
    """The innermost hook, transform of images or part of the model in which an error was raised."""
    names = dict(_names(getattr(runner, "model", None)))
    for frame in reversed(frames):
        owner = frame.f_locals.get("self")
        if isinstance(owner, Hook) and frame.f_code.co_name != "__init__":
            return f"the hook {type(owner).__name__} cannot run"
        # mmcv's, which a training of classifiers lacks.
        called = frame.f_code.co_name == "__call__"
        if called and any(kind.__name__ == "BaseTransform" for kind in type(owner).__mro__):
            return f"the transform {type(owner).__name__} of a pipeline cannot use what it is given"
        if id(owner) in names:
            return f"{names[id(owner)]} ({type(owner).__name__}) cannot use what it is given"
    return None


def _names(model: object) -> Iterator[tuple[int, str]]:
    model = unwrap(model)
    if isinstance(model, nn.Module):
        for name, part in model.named_modules():
            yield id(part), f"model.{name}".rstrip(".")


def _reason(error: BaseException) -> str:
    """The first line of an error, or the line of code that raised it, without the addresses of objects."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    text = re.sub(r" in <[\w.]+ object at 0x[0-9a-f]+>$", "", text)
    text = text or traceback.extract_tb(error.__traceback__)[-1].line or ""
    return f"{type(error).__name__}: {text}".rstrip(": ")
