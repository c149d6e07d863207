"""Folders of records: other records beside one, truth files, and their deletion."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from medpfl.core.errors import InputError, private
from medpfl.core.messages import say
from medpfl.core.records.record import Record
from medpfl.core.records.truth import FOLDER, Truth
from medpfl.core.tensors import shared_prefix

__all__ = ["Forgotten", "forget", "neighbors", "truths_in", "warn_if_overdue"]

_MOST_NEIGHBORS = 20
_LARGEST = 1 << 30
"""Bytes of a neighbor that is read to find a cause."""


@dataclass(frozen=True)
class Forgotten:
    """The result of `forget`: the number of truth files deleted, and what remains, by path."""

    deleted: int
    remaining: tuple[Path, ...]


def neighbors(path: Path, record: Record) -> dict[str, Record]:
    """Return other records of the same model in a record's folder, by file name, in the record's names and dtypes."""
    found: dict[str, Record] = {}
    own = {**record.weights.parameters, **record.weights.buffers}
    for other in sorted(path.parent.glob("*")):
        if len(found) == _MOST_NEIGHBORS:
            break
        with suppress(InputError, OSError):
            if other == path or not other.is_file() or other.stat().st_size > _LARGEST or not Record.is_one(other):
                continue
            made = Record.load(other)
            names = [*made.update.tensors, *made.weights.parameters, *made.weights.buffers]
            made = made.without(shared_prefix(names, list(own))).cast({name: t.dtype for name, t in own.items()})
            if made.weights.parameters.keys() == record.weights.parameters.keys():
                found[other.name] = made
    return found


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


def warn_if_overdue(truth: Truth, path: Path) -> None:
    """Say if a truth file's stated retention is over."""
    if truth.overdue:
        say(
            f"warning: the truth file '{private(path)}' was to be kept for {truth.days} days, which ended on "
            f"{truth.expires:%Y-%m-%d}: delete it with medpfl forget '{private(path.parent)}'"
        )
