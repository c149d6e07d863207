"""Files that are either there as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["write_private", "write_whole"]


def write_whole(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Writes a file under another name, and renames it when it is on the disk."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def write_private(path: Path, content: bytes) -> None:
    """The same, for the owner's eyes only (mode 0600)."""
    write_whole(path, content, 0o600)
