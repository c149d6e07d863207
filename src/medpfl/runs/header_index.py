"""An index of DICOM headers beside the study key, so that a large folder's headers are read once."""

from __future__ import annotations

import contextlib
import json
import stat
from pathlib import Path
from typing import Any

from medpfl.core.atomic_files import PRIVATE, remove_leftovers, write
from medpfl.core.errors import InputError
from medpfl.core.messages import say
from medpfl.data.reading.dicom_headers import kept_headers, recall_headers
from medpfl.runs.study_key import key_file

__all__ = ["INDEX_FILE", "keep_index", "recall_index"]

INDEX_FILE = "medpfl-dicom-index.json"
"""The file beside the key, as private as the key: it holds paths and patients' ids."""

_FORMAT = 1
_LEAST = 1000
"""Least number of files for an index: fewer headers are read in a second or two."""
_LARGEST = 2**29
"""Largest size in bytes of an index that is read."""


def recall_index(out: Path | None) -> None:
    """Take the DICOM headers in the index beside a run's key; an index that cannot be trusted is ignored with a note.

    Headers count only for files whose path, size and time of change are the same.
    """
    if out is None:
        return
    with contextlib.suppress(InputError, OSError, ValueError):  # the run itself will be refused, and say why
        path = key_file(out).with_name(INDEX_FILE)
        if path.exists() or path.is_symlink():
            try:
                recall_headers(_read(path))
            except ValueError as error:
                say(f"note: ignored the index of DICOM headers '{path}' because {error}; all headers are read again")


def keep_index(out: Path | None, place: str) -> None:
    """Write the index beside a run's key, if the data are a folder with many DICOM files, some of them new to it.

    Args:
        out: the run directory.
        place: the data's location.
    """
    root = Path(place)
    if out is None or not root.exists():
        return
    found = kept_headers(root if root.is_dir() else root.parent)
    if len(found) < _LEAST:
        return
    path = key_file(out).with_name(INDEX_FILE)
    remove_leftovers(path.parent, INDEX_FILE)
    old: dict[str, Any] = {}
    with contextlib.suppress(ValueError, OSError):
        old = _read(path)
    others = {name: header for name, header in old.items() if not Path(name).is_relative_to(root)}
    if old != (new := {**others, **found}):
        write(path, json.dumps({"format": _FORMAT, "files": new}).encode(), PRIVATE)


def _read(path: Path) -> dict[str, Any]:
    """Return an index's headers, unchecked.

    Raises:
        ValueError: it is no index, or not only its owner's; the message says which.
    """
    state = path.lstat()
    if not stat.S_ISREG(state.st_mode):
        raise ValueError("it is not a regular file")
    if stat.S_IMODE(state.st_mode) & 0o077:
        raise ValueError("others can read or change it")
    if state.st_size > _LARGEST:
        raise ValueError("it is too large")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.get("format") != _FORMAT or not isinstance(found.get("files"), dict):
        raise ValueError("it is damaged, or comes from another version")
    return found["files"]
