"""Configuration files: reads them, applies the command line, and checks every name against what it configures."""

import ast
import difflib
import functools
import importlib
import importlib.util
import inspect
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import torch
from mmengine import registry
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.runner import Runner

from vssm.errors import ConfigError
from vssm.values import RATE, Rule, check_values, list_of, number, optional, whole

# Top-level options that mmengine reads from the config beside the Runner's arguments.
RUNTIME_OPTIONS = (
    "activation_checkpointing",
    "compile",
    "custom_imports",
    "efficient_conv_bn_eval",
    "find_unused_parameters",
    "model_wrapper_cfg",
    "sync_bn",
)
DATALOADER_OPTIONS = (
    *inspect.signature(torch.utils.data.DataLoader).parameters,
    "dataset",
    "num_batch_per_epoch",
)
# The class of a section without `type`.
IMPLIED_TYPES = {
    "val_cfg": "ValLoop",
    "test_cfg": "TestLoop",
    "optim_wrapper": "OptimWrapper",
    "log_processor": "LogProcessor",
}
# mmdet's and mmseg's base configs have free top-level names; from this similarity on, one counts as misspelt.
MISSPELT = 0.88
# Packages whose arguments are checked in configs of mmdet and mmseg, whose own classes pass arguments on.
CHECKED = ("vssm.", "mmengine.runner", "mmengine.hooks", "mmengine.optim", "mmengine.visualization", "torch.optim.")
# Arguments of a section beside those of its class.
EXTRA_ARGUMENTS = {
    "train_cfg": ("by_epoch",),
    "optim_wrapper": ("constructor", "optimizer", "paramwise_cfg"),
    "default_hooks": ("priority",),
    "custom_hooks": ("priority",),
    "param_scheduler": ("convert_to_iter_based",),
    "visualizer": ("name",),
}

_COUNT, _FROM_ZERO = whole(1, 2**31), whole(0, 2**31)
_INTERVAL = Rule(f"{_COUNT.expected}, or -1 for never", lambda value: value == -1 or _COUNT.holds(value))
_LEARNING_RATE = number(0, 1000)
# By name, in these sections and all within them.
VALUE_SECTIONS = (
    "train_cfg", "train_dataloader", "val_dataloader", "test_dataloader", "optim_wrapper", "param_scheduler",
    "randomness", "auto_scale_lr", "default_hooks", "custom_hooks", "log_processor",
)  # fmt: skip
VALUES = {
    "max_epochs": _COUNT,
    "max_iters": _COUNT,
    "val_interval": _COUNT,
    "val_begin": _FROM_ZERO,
    "batch_size": optional(_COUNT),
    "num_workers": _FROM_ZERO,
    "prefetch_factor": optional(_COUNT),
    "accumulative_counts": _COUNT,
    "base_batch_size": _COUNT,
    "seed": optional(whole(0, 2**32 - 1)),
    "lr": _LEARNING_RATE,
    "weight_decay": _LEARNING_RATE,
    "eps": number(0, 1),
    "betas": list_of(RATE),
    "layer_decay": number(0, 1),
    "max_norm": number(0, 1e9, least_too=False),
    "T_max": optional(_COUNT),
    "eta_min": optional(_LEARNING_RATE),
    "start_factor": number(0, 1, least_too=False),
    "end_factor": number(0, 1),
    "interval": _INTERVAL,
    "max_keep_ckpts": whole(-1, 2**31),
    "momentum": number(0, 1),
    "begin_iter": _FROM_ZERO,
    "begin_epoch": _FROM_ZERO,
    "seconds": number(0, 1e6, least_too=False),
    "window": _COUNT,
    "window_size": Rule(
        f"{_COUNT.expected}, 'epoch' or 'global'", lambda v: v in ("epoch", "global") or _COUNT.holds(v)
    ),
    "begin": _FROM_ZERO,
    "end": _COUNT,
}

# By name, in `model` and all within it; other values fail when they are first used: `vssm.mm.runtime.origin`.
_SHARE = number(-1, 1)  # -1 for none
_SHARES = Rule(
    f"{_SHARE.expected}, or a list of these", lambda value: _SHARE.holds(value) or list_of(_SHARE).holds(value)
)
MODEL_VALUES = {
    **dict.fromkeys(("pos_iou_thr", "neg_iou_thr", "min_pos_iou", "ignore_iof_thr", "iou_threshold"), _SHARES),
    "score_thr": _SHARE,
    "mask_thr_binary": _SHARE,
    "max_per_img": whole(-1, 2**31),
    "loss_weight": number(0, 1e6),
    "dropout_ratio": number(0, 1),
    "label_smoothing": RATE,
}


def parse_options(pairs: Iterable[str]) -> dict[str, object]:
    """The ``KEY=VALUE`` pairs of a command line; lists, tuples and dicts are Python's, or as mmengine reads them.

    >>> parse_options(["train_cfg.max_epochs=3", "model.backbone.dims=(16,32)", "visualizer={'name': 'a b'}"])
    {'train_cfg.max_epochs': 3, 'model.backbone.dims': (16, 32), 'visualizer': {'name': 'a b'}}

    Raises:
        ConfigError: a value with a bracket that is not closed, or one that is neither.
    """
    options = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        try:
            options[key] = _parse_value(value)
        except AssertionError as error:
            raise ConfigError(f"--cfg-options {pair}: {error}") from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"--cfg-options {pair}: expected a list, a tuple or a dict as Python writes it, such as [(1,2),(3,4)] "
                "or {'a':1}, with quotes around names that have brackets or commas"
            ) from error
    return options


def _parse_value(text: str) -> object:
    """mmengine's reading drops spaces, takes a dict for text, and never ends at commas between brackets.

    Raises:
        ValueError, RecursionError: a value that neither Python nor mmengine can read.
        AssertionError: a bracket that is not closed.
    """
    with suppress(ValueError, SyntaxError):
        value = ast.literal_eval(text)
        if isinstance(value, list | dict) or (isinstance(value, tuple) and text.startswith(("(", "["))):
            return value
    if text.startswith("{") or ("{" in text and "," in text):
        raise ValueError(text)
    if "," not in text and not text.startswith(("(", "[")):
        return DictAction._parse_int_float_bool(text.strip("'\""))
    return DictAction._parse_iterable(text)


def load_config(path: str | Path, options: dict | None = None) -> Config:
    """Read a configuration file, apply ``--cfg-options``, and check every name in it.

    Args:
        path: a Python file in mmengine's text style.
        options: ``{"train_cfg.max_epochs": 3}`` and the like, from the command line.

    Raises:
        ConfigError: no such file, Python that does not run, an unknown option, class or argument (with the nearest
            known name).
    """
    config = read_config(path, options)
    check_config(config)
    return config


def read_config(path: str | Path, options: dict | None = None) -> Config:
    """The same without the check of names, for files that do not configure a training."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"there is no configuration file {path}")
    try:
        config = Config.fromfile(path)
        config.merge_from_dict(options or {})
    except SyntaxError as error:
        file = path if error.filename in (None, "<unknown>") else error.filename
        raise ConfigError(f"{file}, line {error.lineno}: {error.msg}") from error
    except ImportError as error:
        hint = "; detection and segmentation need: pip install 'vssm[train,mm]'" if _of_mm(error) else ""
        raise ConfigError(f"{path} cannot be read: {str(error).splitlines()[0]}{hint}") from error
    except Exception as error:  # a config is code, and can raise anything
        raise ConfigError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    return config


def check_config(config: Config) -> None:
    """Find misspelt names before anything is built.

    mmengine silently ignores unknown top-level options. Helper variables of a config start with an underscore.

    Raises:
        ConfigError: names the place, and the nearest known name.
    """
    scope = config.get("default_scope") or "mmengine"
    known = {*inspect.signature(Runner.__init__).parameters, *RUNTIME_OPTIONS} - {"self", "cfg"}
    options = [key for key in config if not key.startswith("_")]
    if scope != "mmengine":
        options = [key for key in options if difflib.get_close_matches(key, known, n=1, cutoff=MISSPELT)]
    check_names("the config", "option", options, known)
    for section in ("train_dataloader", "val_dataloader", "test_dataloader"):
        check_names(section, "option", config.get(section) or (), DATALOADER_OPTIONS)
    loop = "EpochBasedTrainLoop" if (config.get("train_cfg") or {}).get("by_epoch") else "IterBasedTrainLoop"
    implied = {**IMPLIED_TYPES, "train_cfg": loop}
    check_scope(scope)
    for section, node in config.items():
        if not section.startswith("_"):
            for place, part in _typed_parts(node, section, implied.get(section)):
                _check_part(place, part, EXTRA_ARGUMENTS.get(section, ()), scope)
    for section in VALUE_SECTIONS:
        _check_values(config.get(section), section, VALUES)
    _check_values(config.get("model"), "model", MODEL_VALUES)


def _check_values(node: object, place: str, rules: dict[str, Rule]) -> None:
    if isinstance(node, dict):
        try:
            check_values(node, rules.get, f"{place}.")
        except ValueError as error:
            raise ConfigError(str(error)) from error
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    for name, value in entries:
        _check_values(value, f"{place}.{name}", rules)


def check_scope(scope: str) -> None:
    """Check that the package whose classes a config names is installed.

    Args:
        scope: "mmengine", or "mmdet" or "mmseg" for detection and segmentation.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        importlib.import_module(f"{scope}.registry")
    except ImportError as error:
        raise ConfigError(
            f"default_scope={scope!r}: {error}; detection and segmentation need: pip install 'vssm[train,mm]'"
        ) from error


@functools.cache
def _registries(scope: str) -> list[registry.Registry]:
    """Where the classes of a config are looked up, filled: the package's own registries first."""
    modules = [importlib.import_module(f"{package}.registry") for package in dict.fromkeys((scope, "mmengine"))]
    found = [value for module in modules for value in vars(module).values() if isinstance(value, registry.Registry)]
    for each in found:
        each.import_from_location()
    return found


def part_registries() -> list[registry.Registry]:
    """The registries of models, transforms and their helpers, of mmengine and of mmdet and mmseg where installed."""
    found = []
    for package in ("mmengine", "mmdet", "mmseg"):
        if importlib.util.find_spec(package) is not None:
            module = importlib.import_module(f"{package}.registry")
            found += [module.MODELS, module.TASK_UTILS, module.TRANSFORMS]
    return found


def _of_mm(error: ImportError) -> bool:
    return any(name in str(error) for name in ("mmcv", "mmdet", "mmseg"))


def _typed_parts(node: object, place: str, implied: str | None = None) -> Iterator[tuple[str, dict]]:
    """Every dict of a config that has a `type`, with its place, outermost first."""
    if isinstance(node, dict):
        name = node.get("type", implied)
        if isinstance(name, str):
            yield place, {**node, "type": name}
        for key, value in node.items():
            # vssm.data checks the names of timm's and albumentations' transforms.
            if key != "transform" and name != "Albu":
                yield from _typed_parts(value, f"{place}.{key}")
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _typed_parts(value, f"{place}[{index}]")


def _check_part(place: str, part: dict, extra: Iterable[str], scope: str) -> None:
    name = part["type"]
    if "." in name or "::" in name:
        return  # of another package's registry
    scope = part.get("_scope_", scope)  # mmengine's mark on parts from a base config of another package
    foreign, registries = scope != "mmengine", _registries(scope)
    # Registry.get takes each name for a module too, and searches the disk for it: half a second a config.
    target = next((each.module_dict[name] for each in registries if name in each.module_dict), None)
    if target is None:
        names = {key for each in registries for key in each.module_dict}
        # mmdet and mmseg also use types that are in no registry, such as the functions nms and soft_nms.
        if not foreign or difflib.get_close_matches(name, names, n=1, cutoff=MISSPELT):
            raise ConfigError(f"{place}: there is no {name!r} to build{_nearest(name, names)}")
        return
    parameters = inspect.signature(target).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if takes_any or (foreign and not target.__module__.startswith(CHECKED)):
        return
    given = [key for key in part if key not in ("type", "_scope_", *extra)]
    check_names(f"{place} ({name})", "argument", given, parameters)


def check_names(place: str, kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ConfigError for the first given name that is not known, with the nearest one that is."""
    for name in given:
        if name not in known:
            raise ConfigError(f"{place} has no {kind} {name!r}{_nearest(name, known)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known are: {', '.join(sorted(known))}" if len(list(known)) <= 20 else ""


def set_precision(config: Config, amp: str) -> None:
    """Choose the optimiser wrapper of a precision.

    Args:
        config: changed in place.
        amp: "off" for float32, "bf16", or "fp16" with a loss scaler (GPU only).

    Raises:
        ConfigError: fp16 without a GPU, or bf16 on a GPU that lacks it.
    """
    check_precision(amp)
    for name in ("dtype", "loss_scale"):
        config.optim_wrapper.pop(name, None)
    wrappers = {
        "off": {"type": "OptimWrapper"},
        "bf16": {"type": "Bfloat16OptimWrapper"},
        "fp16": {"type": "AmpOptimWrapper", "dtype": "float16"},
    }
    config.optim_wrapper.update(wrappers[amp])


def check_precision(amp: str) -> None:
    """Refuse a precision that this machine does not support.

    Raises:
        ConfigError: names the precision to use instead.
    """
    if amp == "fp16" and not torch.cuda.is_available():
        raise ConfigError("--amp fp16 needs a GPU, and there is none here: use --amp bf16 or --amp off")
    if amp == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise ConfigError("this GPU has no bfloat16: use --amp fp16 or --amp off")


def autocast(amp: str) -> torch.autocast:
    """The context in which an evaluation computes in a precision.

    Raises:
        ConfigError: see `check_precision`.
    """
    check_precision(amp)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp)
    return torch.autocast(get_device(), dtype=dtype, enabled=dtype is not None)


def without_validation(config: Config) -> None:
    """Drop the validation of a training config, and with it the best checkpoint."""
    for section in ("val_dataloader", "val_cfg", "val_evaluator"):
        config[section] = None
    checkpoint = config.get("default_hooks", ConfigDict()).get("checkpoint")
    if checkpoint is not None:
        checkpoint.pop("save_best", None)
