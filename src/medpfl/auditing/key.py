"""Study indices: the only names of images and patients in what is written, and the key back."""

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

__all__ = ["KEY_FILE", "StudyIndex", "study_index"]

KEY_FILE = "medpfl-key.json"


class StudyIndex:
    """Indices that nobody can compute without the secret: a keyed hash of the name."""

    def __init__(self, secret: str, data: LabelledImages, source: str) -> None:
        self.secret = secret
        self.images = [self._index("image", f"{source}/{name}") for name in data.names]
        self.patients = [None if p is None else self._index("patient", f"{source}/{p}") for p in data.patients]

    def _index(self, kind: str, name: str) -> str:
        digest = hmac.new(self.secret.encode(), f"{kind}:{name}".encode(), hashlib.sha256).hexdigest()
        return f"{kind[0]}-{digest[:10]}"

    def fingerprint(self, data: LabelledImages) -> str:
        """A keyed hash of pixels and labels: tells whether the data is the same, and nothing else."""
        digest = hmac.new(self.secret.encode(), data.images.numpy().tobytes(), hashlib.sha256)
        digest.update(data.labels.numpy().tobytes())
        return digest.hexdigest()[:16]


def study_index(out: Path | None, data: LabelledImages, source: str, place: str) -> StudyIndex:
    """The indices of a data set; the key goes into a file of mode 0600 beside the run directory.

    Runs in one folder share the key, so that an image has the same index in all of them.

    Args:
        out: the run directory; ``None`` writes no key.
        data: the images.
        source: what names are relative to, as the key tells it apart from other sources.
        place: where the source is, for the key file only.
    """
    if out is None:
        return StudyIndex(secrets.token_hex(16), data, source)
    with _locked(out.parent / KEY_FILE) as key:
        index = StudyIndex(key.setdefault("secret", secrets.token_hex(16)), data, place)
        images = key.setdefault("images", {})
        patients = key.setdefault("patients", {})
        for name, image, patient, patient_index in zip(
            data.names, index.images, data.patients, index.patients, strict=True
        ):
            images[image] = f"{place}/{name}"
            if patient_index is not None:
                patients[patient_index] = patient
    return index


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[dict[str, Any]]:
    """The key file's content, held against other runs, and written back as a whole if it changed."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        text = path.read_text() if path.exists() else ""
        try:
            key = json.loads(text) if text else {}
        except ValueError:
            raise InputError(f"the key file '{path}' is damaged: move it away, or use another --out") from None
        yield key
        new = json.dumps(key, indent=1)
        if new != text:
            write(path, new.encode(), PRIVATE)
    finally:
        os.close(folder)
