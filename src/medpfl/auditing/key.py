"""Study indices: the only names of images and patients in what is written, and the key back to them and to classes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medpfl.core.errors import InputError
from medpfl.core.files import PRIVATE, write
from medpfl.data.images import LabelledImages

__all__ = ["KEY_FILE", "StudyIndex", "class_names", "study_index"]

KEY_FILE = "medpfl-key.json"


class StudyIndex:
    """Indices that nobody can compute without the secret: a keyed hash of the name."""

    def __init__(self, secret: str, data: LabelledImages, source: str) -> None:
        self.secret = secret
        self.images = [self._index("image", f"{source}/{name}") for name in data.names]
        self.patients = [None if p is None else self._index("patient", f"{source}/{p}") for p in data.patients]

    def _index(self, kind: str, name: str) -> str:
        digest = hmac.new(self.secret.encode(), f"{kind}:{name}".encode(), hashlib.sha256).hexdigest()
        return f"{kind[0]}-{digest[:16]}"

    def fingerprint(self, data: LabelledImages) -> str:
        """A keyed hash of all but the names: whether the data is the same, and nothing else."""
        digest = hmac.new(self.secret.encode(), data.images.numpy().tobytes(), hashlib.sha256)
        digest.update(data.labels.numpy().tobytes())
        if data.masks is not None:
            digest.update(data.masks.numpy().tobytes())
        digest.update(json.dumps([data.classes, data.patients]).encode())
        return digest.hexdigest()[:16]


def study_index(out: Path | None, data: LabelledImages, source: str, place: str) -> StudyIndex:
    """The indices of a data set; the key goes into a file of mode 0600 beside the run directory.

    Runs in one folder share the key, so that an image has the same index in all of them.

    Args:
        out: the run directory; ``None`` writes no key.
        data: the images.
        source: what names are relative to, as the key tells it apart from other sources.
        place: where the source is, for the key file only.

    Raises:
        InputError: the key would lie in a run directory, or it is damaged.
    """
    if out is None:
        return StudyIndex(secrets.token_hex(16), data, source)
    folder = out.resolve().parent
    if (folder / "run.json").exists() or (out / KEY_FILE).exists():
        raise InputError(
            f"the key of '{out}' must lie beside a run directory, not in one: name an --out that lies in no other "
            "run directory and holds none"
        )
    with _locked(folder / KEY_FILE) as key:
        index = StudyIndex(key["secret"], data, place)
        # A folder may be named for a patient: files say "class 0", and only the key says what that is.
        key["classes"][index.fingerprint(data)] = list(data.classes)
        for name, image, patient, patient_index in zip(
            data.names, index.images, data.patients, index.patients, strict=True
        ):
            key["images"][image] = f"{place}/{name}"
            if patient_index is not None:
                key["patients"][patient_index] = patient
    return index


def class_names(out: Path, fingerprint: str) -> tuple[str, ...]:
    """The names of a run's classes by their numbers, if the key is still beside the run directory.

    Args:
        out: the run directory.
        fingerprint: of its data, see `StudyIndex.fingerprint`.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return tuple(json.loads((out.resolve().parent / KEY_FILE).read_text())["classes"][fingerprint])
    return ()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[dict[str, Any]]:
    """The key file's content, held against other runs, and written back as a whole if it changed."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        before = path.read_bytes() if path.exists() else b""
        key = _read(path, before)
        yield key
        after = json.dumps(key, indent=1).encode()
        if after != before:
            write(path, after, PRIVATE)
    finally:
        os.close(folder)


def _read(path: Path, content: bytes) -> dict[str, Any]:
    try:
        key = json.loads(content) if content else {"secret": secrets.token_hex(16), "images": {}, "patients": {}}
        key.setdefault("classes", {})
        if isinstance(key["secret"], str) and all(isinstance(key[k], dict) for k in ("images", "patients", "classes")):
            return key
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise InputError(
        f"the key file '{path}' is damaged: put back a copy, or move it away and name an --out in another folder"
    )
