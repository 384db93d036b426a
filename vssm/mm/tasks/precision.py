"""What of a detector or segmentor stays in float32 where the rest is in mixed precision."""

import torch
from torch import nn


def keep_regions_exact(model: nn.Module) -> None:
    """Let mmdet find boxes, score them and cut out their regions in float32, in mixed precision too.

    It makes anchors and proposals in the precision of a head's outputs, and rounds regions of interest to that of the
    maps, which in bfloat16 is 4 pixels at 1000. NumPy, which scores, does not know bfloat16.
    """
    for part in model.modules():
        if hasattr(part, "roi_layers"):
            part.register_forward_pre_hook(_given_float32)
        if hasattr(part, "bbox_coder") or hasattr(part, "prior_generator"):
            part.register_forward_hook(_gives_float32)


def keep_logits_exact(model: nn.Module) -> None:
    """Let mmseg resize and compare a segmentor's logits in float32, in mixed precision too.

    Resized in bfloat16, the two highest are equal in one of 200 pixels, whose class is then the first of them.
    """
    for name, part in model.named_modules():
        if name.endswith("conv_seg"):
            part.register_forward_hook(_gives_float32)


def _given_float32(_: nn.Module, arguments: tuple) -> tuple:
    return _in_float32(arguments)


def _gives_float32(_: nn.Module, arguments: tuple, outputs: object) -> object:
    return _in_float32(outputs)


def _in_float32(value: object) -> object:
    """Tensors of half precision as float32, in tuples and lists too; anything else as it is."""
    if isinstance(value, tuple | list):
        return type(value)(_in_float32(part) for part in value)
    return value.float() if getattr(value, "dtype", None) in (torch.bfloat16, torch.float16) else value
