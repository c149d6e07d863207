"""A comma-separated table of files: its columns by name, and how its rows name files."""

from __future__ import annotations

import csv
import math
import unicodedata
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medpfl.core.atomic_files import oddity_of
from medpfl.core.errors import InputError
from medpfl.data.reading.decode import reason

__all__ = ["Table", "file_key", "is_missing", "read_table"]

_LARGEST = 2**28
"""Bytes; a larger file is no table of images."""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        path: of the file.
        columns: their names, in lower case.
        rows: a text for each column; rows without any text are left out.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]

    def first(self, *names: str) -> str | None:
        """Return the first of the names that is a column."""
        return next((name for name in names if name in self.columns), None)


def read_table(path: Path, expected: str) -> Table:
    """Read a table.

    Args:
        path: of the file.
        expected: what the table should be, for the error message.

    Raises:
        InputError: the file is not there, is no regular file, is too large or is no table in UTF-8.
    """
    try:
        if why := oddity_of(path):
            raise ValueError(why)
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"it is larger than {_LARGEST >> 20} MiB")
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, restkey="", restval="")
            names = [name.strip().lower() for name in rows.fieldnames or ()]
            rows.fieldnames = names
            kept = tuple({name: (row[name] or "").strip() for name in names} for row in rows)
    except (OSError, ValueError, csv.Error) as error:  # a ValueError: not UTF-8
        raise InputError(f"cannot read '{path}' ({reason(error, path)}): expected {expected}") from error
    return Table(path, tuple(names), tuple(row for row in kept if any(row.values())))


def file_key(name: str) -> str:
    """Return what a file's name and a table's cell have in common, however the table was written.

    >>> file_key("./a/0.png"), file_key("a\\\\0.png")
    ('a/0.png', 'a/0.png')
    """
    return unicodedata.normalize("NFC", str(PurePosixPath(name.strip().replace("\\", "/"))))


def is_missing(cell: str) -> bool:
    """Return whether a cell holds nothing: no text, or a number that is not finite, as pandas writes what it lacks."""
    try:
        return not cell or not math.isfinite(float(cell))
    except ValueError:
        return False
