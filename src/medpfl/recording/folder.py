"""Folders of records: other records beside one, truth files, and their deletion."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from medpfl.core.errors import InputError, private
from medpfl.core.messages import about, say
from medpfl.core.records.record import Record
from medpfl.core.records.truth import FOLDER, Truth

__all__ = ["Forgotten", "Neighbors", "forget", "truth_file", "truths_in"]

_MOST_NEIGHBORS, _MOST_FILES = 20, 200
_LARGEST = 1 << 30
"""Bytes of a neighbor that is read to find a cause."""


@dataclass(frozen=True)
class Forgotten:
    """The result of `forget`: the number of truth files deleted, and what remains, by path."""

    deleted: int
    remaining: tuple[Path, ...]


@dataclass(frozen=True)
class Neighbors:
    """Other records of the same model in a record's folder, read one by one when they are asked for."""

    path: Path
    record: Record

    def items(self) -> Iterator[tuple[str, Record]]:
        """Yield file names and records, in the record's names and dtypes."""
        found, own = 0, {**self.record.weights.parameters, **self.record.weights.buffers}
        for other in islice(sorted(self.path.parent.glob(f"*{self.path.suffix}")), _MOST_FILES):
            made = None
            with suppress(InputError, OSError):
                if other != self.path and other.is_file() and other.stat().st_size <= _LARGEST and Record.is_one(other):
                    made = Record.load(other)
            if made is None or found == _MOST_NEIGHBORS:
                continue
            made = made.named_as(own)
            if made.weights.parameters.keys() == self.record.weights.parameters.keys():
                found += 1
                yield other.name, made


def truths_in(folder: Path) -> Iterator[Path]:
    """Yield all truth files in a folder and its ``private-truth`` folders, at any depth; links are not followed."""
    for place in sorted(folder.rglob("*")):
        with suppress(OSError):
            if stat.S_ISREG(place.lstat().st_mode) and Truth.is_one(place):
                yield place


def forget(folder: Path) -> Forgotten:
    """Delete all truth files in a folder; a ``private-truth`` folder that is then empty is removed too.

    A deleted file's content may still be on the disk, in backups and in snapshots: deletion here does not reach these.

    Raises:
        InputError: there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder '{private(folder)}': name the folder of the records")
    deleted = 0
    for path in list(truths_in(folder)):
        path.unlink()
        deleted += 1
        if path.parent.name == FOLDER and not any(path.parent.iterdir()):
            path.parent.rmdir()
    remaining = tuple(path for path in sorted(folder.rglob("*")) if path.is_file()) if folder.is_dir() else ()
    return Forgotten(deleted, remaining)


def truth_file(path: Path) -> Truth | None:
    """Return the truth file at a path, or ``None`` if it is something else. A warning says if its retention is over."""
    if not Truth.is_one(path):
        return None
    about(path)
    truth = Truth.load(path)
    if truth.overdue:
        say(
            f"warning: the truth file '{private(path)}' was to be kept for {truth.days} days, which ended on "
            f"{truth.expires:%Y-%m-%d}: delete it with medpfl forget '{private(path.parent)}'"
        )
    return truth
