"""Download of files that the user asked for by name, with checksum verification."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from urllib.request import urlopen

from medpfl.core.errors import InputError
from medpfl.data.reading.decode import reason

__all__ = ["cached"]

_SECONDS = 60


def cached(url: str, md5: str) -> Path:
    """Return the path of a file; download it first if it is not in the cache.

    Args:
        url: download address; its last part is the file name.
        md5: published checksum, in hexadecimal.

    Returns:
        The path, below ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Raises:
        InputError: the download failed, or the checksum differs.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "medpfl"
    path = folder / url.rpartition("/")[2].partition("?")[0]
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _download(url, md5, path)
    elif _md5(path) != md5:
        raise InputError(f"'{path}' does not have the published checksum: delete it, so that it is downloaded again")
    return path


def _download(url: str, md5: str, path: Path) -> None:
    """Download to a temporary file; move it into place once it is complete and its checksum matches."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        part = Path(folder, path.name)
        try:
            with urlopen(url, timeout=_SECONDS) as answer, part.open("wb") as file:
                shutil.copyfileobj(answer, file)
        except OSError as error:
            raise InputError(
                f"cannot download {url} ({reason(error)}): download it yourself and give its path"
            ) from None
        if (found := _md5(part)) != md5:
            raise InputError(f"the download from {url} has the checksum {found}, not the published {md5}: discarded")
        part.replace(path)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
