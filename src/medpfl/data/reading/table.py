"""Comma-separated tables of files: columns by name, and normalized file names."""

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
"""Maximum size in bytes; a larger file is not a table of images."""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        path: path of the file.
        columns: column names, in lower case.
        rows: one dict per row from column name to text; empty rows are left out.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]

    def first(self, *names: str) -> str | None:
        """Return the first of the names that is a column, or None."""
        return next((name for name in names if name in self.columns), None)


def read_table(path: Path, expected: str) -> Table:
    """Read a table.

    Args:
        path: path of the file.
        expected: description of the expected table, for the error message.

    Raises:
        InputError: the file does not exist, is not a regular file, is too large, or is not a UTF-8 table.
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
    """Return a normalized file name, equal for a file and any spelling of its name in a table.

    >>> file_key("./a/0.png"), file_key("a\\\\0.png")
    ('a/0.png', 'a/0.png')
    """
    return unicodedata.normalize("NFC", str(PurePosixPath(name.strip().replace("\\", "/"))))


def is_missing(cell: str) -> bool:
    """Return True if a cell is empty or holds a number that is not finite (pandas writes missing values as NaN)."""
    try:
        return not cell or not math.isfinite(float(cell))
    except ValueError:
        return False
