"""Folders of runs: whether one can be created, and whether one to be shared holds only what its run wrote."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from medpfl.core.atomic_files import is_leftover
from medpfl.core.errors import InputError, private

__all__ = ["check_made", "check_outside", "check_shared", "made", "remove_previews"]

_PREVIEWS = frozenset({".DS_Store", ".directory", "Thumbs.db", "desktop.ini", "ehthumbs.db"})
"""Files that a file manager writes into a folder it shows. They can hold names and previews of what once lay there."""

_NAMED = 3
"""Number of foreign files that a message names."""


def check_outside(out: Path | None, place: str) -> None:
    """Raise `InputError` if the run directory lies in the data folder."""
    if out is not None and Path(place).is_dir() and out.resolve().is_relative_to(place):
        raise InputError(f"--out '{out}' lies in the data folder, so its pictures would become data: name another one")


def made(out: Path) -> None:
    """Create a folder and its parents.

    Raises:
        InputError: if it cannot be created.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a null byte
        why = getattr(error, "strerror", None) or error
        raise InputError(f"--out '{out}' cannot be created ({why}): name another one") from error


def check_made(out: Path) -> None:
    """Raise the `InputError` of `made` if a folder could not be created; nothing is created."""
    try:
        there = out if out.exists() else next(folder for folder in out.absolute().parents if folder.exists())
    except (OSError, ValueError) as error:
        raise InputError(f"--out '{out}' cannot be created ({error}): name another one") from error
    if not there.is_dir():
        why = os.strerror(errno.EEXIST if there == out else errno.ENOTDIR)
    elif not os.access(there, os.W_OK):
        why = os.strerror(errno.EACCES)
    else:
        return
    raise InputError(f"--out '{out}' cannot be created ({why}): name another one")


def check_shared(folder: Path, patterns: Iterable[str]) -> None:
    """Raise `InputError` if a run's folder for sharing holds a file that the run did not write.

    Half-written files and a file manager's are not counted: `RunDirectory.locked` and `remove_previews` remove them.

    Args:
        folder: the folder; it need not exist.
        patterns: names of the files that the run writes into it, relative to it.
    """
    ours = {path for pattern in patterns for path in folder.glob(pattern) if not path.is_symlink()}
    foreign = sorted(path for path in _files(folder) if path not in ours and not _passes(path))
    if foreign:
        named = ", ".join(f"'{private(path.relative_to(folder))}'" for path in foreign[:_NAMED])
        more = f" and {len(foreign) - _NAMED} more" if len(foreign) > _NAMED else ""
        raise InputError(
            f"'{folder}' may be shared, so it must hold only what this run writes, but it also holds {named}{more}: "
            "move that away and repeat the command, or name another --out"
        )


def remove_previews(folder: Path) -> None:
    """Remove a file manager's files from a folder for sharing, and from the folders in it."""
    for path in list(_files(folder)):
        if path.name in _PREVIEWS:
            with suppress(OSError):  # in use: it goes with the next call
                path.unlink()


def _passes(path: Path) -> bool:
    return path.name in _PREVIEWS or is_leftover(path.name)


def _files(folder: Path) -> Iterator[Path]:
    """Yield everything below a folder that is no folder; a link to a folder is not followed, and counts as a file."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise InputError(f"'{error.filename}' cannot be read ({error.strerror}), so what it holds is unknown")

    for base, folders, files in os.walk(folder, onerror=refuse):
        links = [name for name in folders if Path(base, name).is_symlink()]
        yield from (Path(base, name) for name in (*files, *links))
