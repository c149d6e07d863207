"""Rows of the arrays in an ``.npz`` file, without loading the rest, and never a pickled object."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from medpfl.core.errors import InputError
from medpfl.data.decode import reason

__all__ = ["Npz"]


@dataclass(frozen=True)
class Npz:
    """An ``.npz`` file.

    Attributes:
        path: of the file.
        names: of its arrays.
    """

    path: Path
    names: tuple[str, ...]

    @classmethod
    def open(cls, path: Path) -> Npz:
        """Raises `InputError` if there is no such file, or it is no ``.npz``."""
        if not path.is_file():
            raise InputError(f"there is no file '{path}'")
        try:
            with zipfile.ZipFile(path) as archive:
                return cls(path, tuple(n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")))
        except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
            raise InputError(f"'{path}' is no .npz file ({reason(error)}): it may be cut off; get it anew") from None

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an array."""
        with _array(self.path, name) as (_, shape, _):
            return shape

    def rows(self, name: str, rows: Sequence[int] | None = None) -> np.ndarray:
        """Some rows of an array, in ascending order; ``None``: all.

        Raises:
            InputError: the array holds pickled objects, is stored by columns, or is cut off.
        """
        with _array(self.path, name) as (file, shape, dtype):
            size = int(np.prod(shape[1:])) * dtype.itemsize
            wanted = range(shape[0]) if rows is None else rows
            place, parts = 0, []
            for row in wanted:
                file.seek((row - place) * size, 1)
                parts.append(file.read(size))
                place = row + 1
            if any(len(part) < size for part in parts):
                raise InputError(f"array '{name}' in '{self.path}' is cut off: get the file anew")
            return np.frombuffer(b"".join(parts), dtype).reshape(len(parts), *shape[1:])


@contextmanager
def _array(path: Path, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype]]:
    """The file at the first number of an array, the array's shape and its type."""
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
            yield file, shape, dtype
    except InputError:
        raise
    except Exception as error:  # a damaged header makes numpy raise almost anything
        raise InputError(f"array '{name}' in '{path}' is damaged ({reason(error)}): get the file anew") from None
