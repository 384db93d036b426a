"""Any timm model by its name, with errors that say what is wrong with the name or the arguments."""

import difflib
import warnings
from collections.abc import Mapping

import timm
from torch import nn

import vssm  # noqa: F401  (registers its models with timm)
from vssm.errors import ConfigError
from vssm.models import CheckpointError, check_arguments
from vssm.scan import resolve_order

_OLD_NAME = "model_name"
# What constructors raise for values that they cannot use.
_OF_ARGUMENTS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)


def create_model(name: str, **arguments: object) -> nn.Module:
    """``timm.create_model`` whose errors name the nearest known model, or the argument that does not fit.

    Raises:
        ConfigError: unknown model name, scan order, or an argument that the model does not take.

    >>> create_model("vim_tiny", num_classes=3, depth=1).num_classes
    3
    """
    check_known(name)
    if "scan_order" in arguments:
        try:
            resolve_order(arguments["scan_order"])
        except ValueError as error:
            raise ConfigError(f"model.backbone.scan_order: {error}") from error
    try:
        check_arguments({key: value for key, value in arguments.items() if _is_of_all(key) and value is not None})
        return timm.create_model(name, **arguments)
    except CheckpointError:
        raise
    except OSError as error:
        if ":" not in name:
            raise
        reason = str(error).splitlines()[0]
        raise ConfigError(f"model {name!r}: its configuration or weights cannot be had ({reason})") from error
    except _OF_ARGUMENTS as error:
        if not arguments:
            raise
        raise ConfigError(f"model {name!r}: {error or type(error).__name__}") from error


def with_name(arguments: Mapping[str, object], place: str = "model.backbone") -> dict[str, object]:
    """The arguments of `create_model`, in which the model may have its old spelling, ``model_name``.

    Args:
        arguments: as they stand in a config or checkpoint.
        place: where, for what is said of them.

    Warns:
        FutureWarning: the old spelling.

    Raises:
        ConfigError: no name, or both spellings.

    >>> with_name({"name": "vim_tiny", "num_classes": 3})
    {'name': 'vim_tiny', 'num_classes': 3}
    """
    arguments = dict(arguments)
    if _OLD_NAME in arguments:
        if "name" in arguments:
            raise ConfigError(
                f"{place} has a name, {arguments['name']!r}, and a {_OLD_NAME}, {arguments[_OLD_NAME]!r}, which is the "
                f"old spelling; give {place}.name alone"
            )
        warnings.warn(f"{place}.{_OLD_NAME} is now {place}.name", FutureWarning, stacklevel=2)
        arguments = {"name": arguments.pop(_OLD_NAME), **arguments}
    if not isinstance(arguments.get("name"), str):
        raise ConfigError(f"{place}.name is {arguments.get('name')!r}; expected the name of a timm model")
    return arguments


def _is_of_all(argument: str) -> bool:
    """Whether an argument means the same in all of timm's models."""
    return argument in ("num_classes", "in_chans") or argument.endswith("drop_rate") or argument == "drop_path_rate"


def is_known(name: str) -> bool:
    """Whether timm has a model of this name; a tag of weights after a dot does not count."""
    return timm.is_model(name.partition(".")[0])


def check_known(name: str) -> None:
    """Raises ConfigError, with the nearest names, for a model that timm does not have.

    >>> check_known("work_dirs/epoch_30.pth")
    Traceback (most recent call last):
    vssm.errors.ConfigError: 'work_dirs/epoch_30.pth' is a path; expected the name of a model, such as vim_tiny, or \
local-dir:FOLDER or hf-hub:OWNER/NAME
    """
    if "/" in name and ":" not in name:
        raise ConfigError(
            f"{name!r} is a path; expected the name of a model, such as vim_tiny, or local-dir:FOLDER or "
            "hf-hub:OWNER/NAME"
        )
    if not is_known(name) and ":" not in name:
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() has the names"
        raise ConfigError(f"there is no model called {name!r}; {hint}")
