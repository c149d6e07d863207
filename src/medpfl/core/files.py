"""Whole files or none: a file that is read while it is written is the old one or the new one."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

__all__ = ["PRIVATE", "SHARED", "write"]

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
