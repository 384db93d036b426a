"""Memory that kernels read and write by its address; what C is handed is checked to be what C takes it for."""

from __future__ import annotations

import torch
from torch import Tensor

_CPU = torch.device("cpu")  # the object: reading its name takes as long as an allocation


def address(
    name: str, tensor: Tensor | None, size: int, dtype: torch.dtype = torch.float32, *, rows: bool = False
) -> int | None:
    """The address of a tensor's memory; None for None.

    Args:
        name: of the tensor, for the error.
        tensor: what C reads or writes.
        size: how many numbers C takes it for.
        dtype: of these.
        rows: whether C is told the strides, so that only the last dimension has to be contiguous.

    Raises:
        TypeError: another size, dtype, device or layout; C would read or write beyond the memory.
    """
    if tensor is None:
        return None
    laid_out = tensor.is_contiguous() or (rows and (tensor.stride(-1) == 1 or tensor.shape[-1] == 1))
    if laid_out and tensor.is_cpu and tensor.dtype is dtype and tensor.numel() == size:
        return tensor.data_ptr()
    layout = "contiguous rows" if rows else "contiguous"
    raise TypeError(
        f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)} and strides {tensor.stride()} on {tensor.device}; "
        f"the C kernel takes {size} numbers of {dtype}, {layout}, on the CPU"
    )


def packed(tensor: Tensor) -> Tensor:
    """The tensor in one piece, with the strides that follow from its shape.

    `contiguous` leaves a dimension of one the stride that it has, whatever it is, and nothing may be read by that.

    >>> column = torch.zeros(2, 3).as_strided((2, 1, 3), (3, 1, 1))
    >>> column.contiguous().stride(), packed(column).stride()
    ((3, 1, 1), (3, 3, 1))
    """
    return tensor.contiguous().view(-1).view(tensor.shape)


def floats(*shape: int, zero: bool = False) -> Tensor:
    """Memory for a C kernel to write, zeroed where it adds; float32 on the CPU whatever torch's defaults are."""
    make = torch.zeros if zero else torch.empty
    return make(shape, dtype=torch.float32, device=_CPU)
