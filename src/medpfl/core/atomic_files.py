"""Atomic file writes: a reader always sees the whole old file or the whole new one."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows, where nobody can remove a file that is open
    fcntl = None  # type: ignore[assignment]

__all__ = ["PRIVATE", "SHARED", "as_csv", "is_leftover", "oddity_of", "remove_leftovers", "write"]

PRIVATE = 0o600
SHARED = 0o666  # less the umask
_PART = re.compile(r"\.(?P<of>.+\.(?:csv|html|json|jsonl|md|pdf|png|safetensors|svg|tex|yaml))\.[0-9a-f]{8}")
"""The temporary name of a file before it replaces its target."""


def oddity_of(path: Path) -> str | None:
    """Return why a path is no regular file, or ``None`` if it is one. Opens nothing: a pipe could block forever.

    >>> oddity_of(Path("/dev/null"))
    'not a regular file'
    """
    if path.is_file():
        return None
    if path.exists():
        return "a folder, not a file" if path.is_dir() else "not a regular file"
    return "a link to nothing" if path.is_symlink() else "there is no such file"


def write(path: Path, content: bytes, mode: int = SHARED) -> Path:
    """Write to a temporary file in the same folder, then replace the target. A private file is private at any time."""
    while not _written(path, content, mode):
        pass  # another process removed the temporary file as a leftover before it was locked
    return path


def _written(path: Path, content: bytes, mode: int) -> bool:
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            with contextlib.suppress(OSError):  # the file system has no locks
                _hold(file.fileno())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            part.replace(path)  # closed first: Windows replaces no open file
            return True
        return False
    finally:
        part.unlink(missing_ok=True)


def _hold(descriptor: int) -> None:
    """Lock an open file, so that `remove_leftovers` in another process does not remove it.

    Raises:
        OSError: another process holds the lock, or the file system has no locks.
    """
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_leftover(name: str) -> bool:
    """Return True for the temporary name of a file that `write` is writing, or left behind.

    >>> is_leftover(".report.html.0a1b2c3d"), is_leftover("report.html")
    (True, False)
    """
    return _PART.fullmatch(name) is not None


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove temporary files that `write` left in a folder when its process was killed, but none still being written.

    Args:
        folder: the folder to clean; its subfolders are left alone.
        name: remove only temporary files for this target name; ``None`` removes all.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in sorted(folder.iterdir()):
            part = _PART.fullmatch(path.name)
            if part is not None and name in (None, part["of"]) and path.is_file() and not path.is_symlink():
                _remove_if_free(path)


def _remove_if_free(path: Path) -> None:
    with contextlib.suppress(OSError):  # a live process may be writing it
        with path.open("rb") as file:
            _hold(file.fileno())
        path.unlink()


def as_csv(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows as CSV under a header of names. Lists are joined by spaces, and other keys are left out.

    >>> print(as_csv(["a", "b"], [{"a": 1, "b": ["x", ("y", 2)], "c": 3}]), end="")
    a,b
    1,x y 2
    """
    file = io.StringIO()
    writer = csv.DictWriter(file, names, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: _joined(v) if isinstance(v, list | tuple) else v for k, v in row.items()})
    return file.getvalue()


def _joined(value: Any) -> str:
    return " ".join(map(_joined, value)) if isinstance(value, list | tuple) else str(value)
