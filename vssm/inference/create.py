"""Any timm model by its name, with errors that say what is wrong with the name or the arguments."""

import difflib

import timm
from torch import nn

import vssm  # noqa: F401  (registers its models with timm)
from vssm.errors import ConfigError
from vssm.models import CheckpointError, check_arguments
from vssm.scan import resolve_order

# What constructors raise for values that they cannot use.
_OF_ARGUMENTS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)


def create_model(model_name: str, **arguments: object) -> nn.Module:
    """``timm.create_model`` whose errors name the nearest known model, or the argument that does not fit.

    Raises:
        ConfigError: unknown model name, scan order, or an argument that the model does not take.

    >>> create_model("vim_tiny", num_classes=3, depth=1).num_classes
    3
    """
    check_known(model_name)
    if "scan_order" in arguments:
        try:
            resolve_order(arguments["scan_order"])
        except ValueError as error:
            raise ConfigError(f"model.backbone.scan_order: {error}") from error
    try:
        check_arguments({name: value for name, value in arguments.items() if _is_of_all(name) and value is not None})
        return timm.create_model(model_name, **arguments)
    except CheckpointError:
        raise
    except _OF_ARGUMENTS as error:
        if not arguments:
            raise
        raise ConfigError(f"model {model_name!r}: {error or type(error).__name__}") from error


def _is_of_all(argument: str) -> bool:
    """Whether an argument means the same in all of timm's models."""
    return argument in ("num_classes", "in_chans") or argument.endswith("drop_rate") or argument == "drop_path_rate"


def is_known(model_name: str) -> bool:
    """Whether timm has a model of this name; a tag of weights after a dot does not count."""
    return timm.is_model(model_name.partition(".")[0])


def check_known(model_name: str) -> None:
    """Raises ConfigError, with the nearest names, for a model that timm does not have."""
    if not is_known(model_name) and "/" not in model_name and ":" not in model_name:
        near = difflib.get_close_matches(model_name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() has the names"
        raise ConfigError(f"there is no model called {model_name!r}; {hint}")
