"""Folders of records: other records beside one, truth files, and their deletion."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from medpfl.core.errors import InputError, private
from medpfl.core.messages import about, say
from medpfl.core.records.record import Record
from medpfl.core.records.truth import FOLDER, Truth, truth_beside
from medpfl.inputs.spelling import is_pattern, matching, path_of

__all__ = [
    "Forgotten",
    "Neighbors",
    "forget",
    "joined",
    "kept_at",
    "truth_file",
    "truth_given",
    "truths_in",
]

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


def truth_given(truth: str | None, record: Path) -> str | None:
    """Return the truth that was given, or else the truth file in its place, which a note then names."""
    if truth is None and (beside := truth_beside(record)) is not None:
        say(f"note: the truth is '{private(beside)}', in its place beside the record")
        return str(beside)
    return truth


def kept_at(truth: Any, clients: int = 1) -> tuple[Truth, Path] | None:
    """Return the truth file at a path with its path, or ``None`` if it is something else.

    A warning says if its retention is over.

    Args:
        truth: a path; for a mean, also a list or a pattern, such as ``site-*/private-truth/round-0003-*``.
        clients: number of clients whose updates are averaged in the record.

    Raises:
        InputError: several files are given that are not one truth file for each client.
    """
    if isinstance(truth, str | Path) and not is_pattern(str(truth)):
        kept = truth_file(path_of(truth))
        if kept is None and clients > 1:
            raise InputError(f"the record is the mean of {clients} clients' updates: give --truth their truth files")
        return kept and (kept, path_of(truth))
    if not isinstance(truth, str | list | tuple | Path):
        return None
    paths = matching(str(truth)) if isinstance(truth, str | Path) else [path_of(one) for one in truth]
    held = [truth_file(path) for path in paths]
    whole = [one for one in held if one is not None]
    if len(whole) != clients or len(held) != clients:
        what = "1 client's update" if clients == 1 else f"the mean of {clients} clients' updates"
        raise InputError(f"the record is {what}, but --truth names {len(whole)} truth files of {len(held)} files")
    return joined(whole), paths[0]


def joined(truths: Sequence[Truth]) -> Truth:
    """Return the truths of several clients as one, client after client.

    The order of the images is known only if it is known for each client.

    Raises:
        InputError: their images or labels have different shapes.
    """
    if len({(t.images.shape[1:], t.labels.shape[1:]) for t in truths}) > 1:
        raise InputError("the truth files hold images or labels of different shapes: give those of one round")
    starts = [sum(len(t.images) for t in truths[:i]) for i in range(len(truths))]
    orders = [t.order + start for t, start in zip(truths, starts, strict=True) if t.order is not None]
    return Truth(
        torch.cat([t.images for t in truths]),
        torch.cat([t.labels for t in truths]),
        torch.cat(orders) if len(orders) == len(truths) else None,
        date=min(t.date for t in truths),
        days=min(t.days for t in truths),
    )
