"""Access to single rows of arrays in an ``.npz`` file. It never loads the whole file and never unpickles."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from medpfl.core.atomic_files import oddity_of
from medpfl.core.errors import InputError
from medpfl.data.reading.decode import reason

__all__ = ["Npz"]

_MOST_ROWS = 10**7
_EXPANDED = 1100
"""Most bytes that one compressed byte can expand to with deflate."""


@dataclass(frozen=True)
class Npz:
    """An ``.npz`` file.

    Attributes:
        path: path of the file.
        names: names of its arrays.
    """

    path: Path
    names: tuple[str, ...]

    @classmethod
    def open(cls, path: Path) -> Npz:
        """Open a file and list its arrays.

        Raises:
            InputError: the file does not exist or is not an ``.npz`` file.
        """
        if why := oddity_of(path):
            raise InputError(f"cannot read '{path}': {why}")
        try:
            with zipfile.ZipFile(path) as archive:
                return cls(path, tuple(n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")))
        except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
            raise InputError(
                f"'{path}' is not an .npz file ({reason(error, path)}): it may be truncated; download it again"
            ) from None

    def shape(self, name: str) -> tuple[int, ...]:
        """Return an array's shape."""
        with _array(self.path, name) as (_, shape, _):
            return shape

    def rows(self, name: str, rows: Sequence[int] | None = None) -> np.ndarray:
        """Return the given rows of an array, which must be in ascending order; None reads all.

        Raises:
            InputError: the array holds pickled objects, is stored by columns, or is truncated.
        """
        with _array(self.path, name) as (file, shape, dtype):
            size = math.prod(shape[1:]) * dtype.itemsize
            if rows is None:
                return np.frombuffer(file.read(shape[0] * size), dtype).reshape(shape)
            place, parts = 0, []
            for row in rows:
                file.seek((row - place) * size, 1)
                parts.append(file.read(size))
                place = row + 1
            if any(len(part) < size for part in parts):
                raise InputError(f"array '{name}' in '{self.path}' is truncated: download the file again")
            return np.frombuffer(b"".join(parts), dtype).reshape(len(parts), *shape[1:])


@contextmanager
def _array(path: Path, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype]]:
    """Yield the open file at an array's first element, with the array's shape and type."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            major, _ = npy.read_magic(file)
            shape, by_columns, dtype = (npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0)(file)
            if dtype.hasobject:
                raise InputError(
                    f"array '{name}' in '{path}' holds pickled objects, and loading them could run code: save numbers"
                )
            if not shape or (by_columns and len(shape) > 1):
                raise InputError(f"array '{name}' in '{path}' is stored by columns or has no rows: save it by rows")
            _check_size(shape, dtype, archive.getinfo(f"{name}.npy"), file.tell(), f"array '{name}' in '{path}'")
            yield file, shape, dtype
    except InputError:
        raise
    except Exception as error:  # a damaged header makes numpy raise almost anything
        raise InputError(f"array '{name}' in '{path}' is damaged ({reason(error, path)}): download it again") from None


def _check_size(shape: tuple[int, ...], dtype: np.dtype, entry: zipfile.ZipInfo, header: int, what: str) -> None:
    """Check the size that a header claims against the bytes present, before anything is read or allocated.

    Raises:
        InputError: the array cannot be as large as its header says, or has too many rows.
    """
    if min(shape) < 0 or not dtype.itemsize or 0 in shape[1:]:
        raise InputError(f"{what} has shape {shape} and type {dtype}: it holds no elements")
    if shape[0] > _MOST_ROWS:
        raise InputError(f"{what} claims to have {shape[0]} rows: at most {_MOST_ROWS} are supported")
    there = min(entry.file_size - header, entry.compress_size * _EXPANDED)
    if math.prod(shape) * dtype.itemsize > there:
        raise InputError(f"{what} is truncated: the file is smaller than its shape {shape}; download it again")
