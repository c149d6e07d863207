"""Whole files or none: a file that is read while it is written is the old one or the new one."""

from __future__ import annotations

import csv
import io
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["PRIVATE", "SHARED", "as_csv", "write"]

PRIVATE = 0o600
SHARED = 0o666  # less the umask


def write(path: Path, content: bytes, mode: int = SHARED) -> Path:
    """Writes under another name beside the file, then replaces it. Private from the first byte on."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def as_csv(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows under a head of names; lists are words, and what has no name is left out.

    >>> print(as_csv(["a", "b"], [{"a": 1, "b": ["x", 2], "c": 3}]), end="")
    a,b
    1,x 2
    """
    file = io.StringIO()
    writer = csv.DictWriter(file, names, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()})
    return file.getvalue()
