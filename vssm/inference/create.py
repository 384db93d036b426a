"""Any timm model by its name, with errors that say what is wrong with the name or the arguments."""

import difflib

import timm
from torch import nn

import vssm  # noqa: F401  (registers its models with timm)
from vssm.errors import ConfigError
from vssm.scan import resolve_order


def create_model(model_name: str, **arguments: object) -> nn.Module:
    """``timm.create_model`` whose errors name the nearest known model, or the argument that does not fit.

    Raises:
        ConfigError: unknown model name, scan order, or an argument that the model does not take.

    >>> create_model("vim_tniy")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    vssm.errors.ConfigError: there is no model called 'vim_tniy'; did you mean vim_tiny...?
    """
    if not is_known(model_name) and "/" not in model_name and ":" not in model_name:
        near = difflib.get_close_matches(model_name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() has the names"
        raise ConfigError(f"there is no model called {model_name!r}; {hint}")
    if "scan_order" in arguments:
        try:
            resolve_order(arguments["scan_order"])
        except ValueError as error:
            raise ConfigError(f"model.backbone.scan_order: {error}") from error
    try:
        return timm.create_model(model_name, **arguments)
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise ConfigError(f"model {model_name!r}: {error}") from error


def is_known(model_name: str) -> bool:
    """Whether timm has a model of this name; a tag of weights after a dot does not count."""
    return timm.is_model(model_name.partition(".")[0])
