"""Large tensors in memory that all processes of this machine use together, so that it holds them only once.

The memory has no name in any file system, and ends with the last process that uses it, however that ends. Other systems
than Linux have no such memory: tensors are usual ones there.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Sequence
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["LARGE", "Shared", "empty", "opened", "shared"]

LARGE = 2**20
"""Bytes from which a tensor is large."""

_FILES: dict[int, int] = {}
"""Open file of each memory of this process, by its address."""


class Shared(NamedTuple):
    """The place of a tensor, for `opened` in another process of this machine.

    Attributes:
        path: the memory as a file, as long as the tensor exists.
        shape, dtype: the tensor's.
    """

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def empty(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor of any values, in shared memory if it is large and this system has some."""
    size = prod(shape) * dtype.itemsize
    if size >= LARGE and hasattr(os, "memfd_create"):
        with suppress(OSError):
            return _made(size).view(dtype).view(*shape)
    return torch.empty(*shape, dtype=dtype)


def shared(tensor: Tensor) -> Shared | None:
    """Return the place of a tensor from `empty`, or of its first rows; ``None`` for any other one."""
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and tensor.is_contiguous()
    if not plain or tensor.requires_grad or tensor.nbytes < LARGE or tensor.data_ptr() not in _FILES:
        return None
    return Shared(f"/proc/{os.getpid()}/fd/{_FILES[tensor.data_ptr()]}", tuple(tensor.shape), tensor.dtype)


def opened(path: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a tensor in another process's memory, see `Shared`. Changes of it remain its own.

    Do not change the original once it is shared: a change may or may not appear here.
    """
    with Path(path).open("rb") as file:
        memory = mmap.mmap(file.fileno(), prod(shape) * dtype.itemsize, access=mmap.ACCESS_COPY)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def _made(size: int) -> Tensor:
    """Return bytes in new shared memory, which takes two of the process's open files: this one, and one of `mmap`."""
    file = os.memfd_create("medpfl")
    try:
        os.ftruncate(file, size)
        memory = mmap.mmap(file, size)
    except BaseException:
        os.close(file)
        raise
    made = torch.frombuffer(memory, dtype=torch.uint8)
    _FILES[made.data_ptr()] = file
    weakref.finalize(memory, _forget, made.data_ptr())
    return made


def _forget(address: int) -> None:
    os.close(_FILES.pop(address))
