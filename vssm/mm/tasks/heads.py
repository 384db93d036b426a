"""Registers the heads of mmseg that this library adds; mmseg is imported where one is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmengine.registry import MODELS

if TYPE_CHECKING:
    from vssm.mm.tasks.u_shape import UShapedHead


@MODELS.register_module(name="UShapedHead")
def u_shaped_head(**arguments: object) -> UShapedHead:
    """See `vssm.mm.tasks.u_shape.UShapedHead`."""
    from vssm.mm.tasks import u_shape

    return u_shape.UShapedHead(**arguments)
