"""Study indices: the only names of images and patients in what is written, and the key back to them and to classes."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from medpfl.core.atomic_files import PRIVATE, remove_leftovers, write
from medpfl.core.errors import InputError
from medpfl.core.messages import KEY_FILE, say
from medpfl.data.images import LabelledImages
from medpfl.runs.directory import RUNS, known_in

__all__ = ["KEY_FILE", "Key", "StudyIndex", "class_names", "key_file", "key_of", "study_index"]

_OF_RUNS = ("frontier", "reproduction")
"""Kinds of runs that are made of other runs."""

_SHORTEST = 16
"""Characters of a secret; ours have 32."""


class Key:
    """The secret of a study, and what is written in place of texts that may name a person.

    Attributes:
        where: the key is, for a message.
    """

    def __init__(self, secret: str, where: str = "memory") -> None:
        self.secret, self.where = secret, where

    def tag(self, kind: str, text: str) -> str:
        """A keyed hash: the same for the same key and text, and nobody can compute it without the key."""
        return hmac.new(self.secret.encode(), f"{kind}:{text}".encode(), hashlib.sha256).hexdigest()[:16]


class StudyIndex(Key):
    """Indices that nobody can compute without the secret: a keyed hash of the name."""

    def __init__(self, secret: str, data: LabelledImages, source: str, where: str = "memory") -> None:
        super().__init__(secret, where)
        self.images = [self._index("image", f"{source}/{name}") for name in data.names]
        self.patients = [None if p is None else self._index("patient", f"{source}/{p}") for p in data.patients]

    def _index(self, kind: str, name: str) -> str:
        return f"{kind[0]}-{self.tag(kind, name)}"

    def fingerprint(self, data: LabelledImages) -> str:
        """A keyed hash of all but the names: whether the data is the same, and nothing else."""
        digest = hmac.new(self.secret.encode(), data.images.numpy().tobytes(), hashlib.sha256)
        digest.update(data.labels.numpy().tobytes())
        if data.masks is not None:
            digest.update(data.masks.numpy().tobytes())
        digest.update(json.dumps([data.classes, data.patients]).encode())
        return digest.hexdigest()[:16]


def study_index(out: Path | None, data: LabelledImages, source: str, place: str, force: bool = False) -> StudyIndex:
    """The indices of a data set; the key goes into a file of mode 0600 beside the run directory.

    Runs in one folder share the key, so that an image has the same index in all of them. The runs of a frontier or a
    reproduction share the key beside that.

    Args:
        out: the run directory; ``None`` writes no key.
        data: the images.
        source: what names are relative to, as the key tells it apart from other sources.
        place: where the source is, for the key file only.
        force: makes a new key in place of one that is missing.

    Raises:
        InputError: the key would lie in a run directory, it is damaged, or it is missing beside rows that were made
            with it.
    """
    if out is None:
        return StudyIndex(secrets.token_hex(16), data, source)
    with _locked(key_file(out), None if force else out) as key:
        index = StudyIndex(key["secret"], data, place, f"'{key_file(out)}'")
        # A folder may be named for a patient: files say "class 0", and only the key says what that is.
        key["classes"][index.fingerprint(data)] = list(data.classes)
        for name, image, patient, patient_index in zip(
            data.names, index.images, data.patients, index.patients, strict=True
        ):
            key["images"][image] = f"{place}/{name}"
            if patient_index is not None:
                key["patients"][patient_index] = patient
    return index


def key_of(out: Path, force: bool = False) -> Key:
    """The key of a directory of runs; it is made if there is none.

    Args:
        out: the directory of a frontier.
        force: makes a new key in place of one that is missing.

    Raises:
        InputError: as from `study_index`.
    """
    with _locked(key_file(out), None if force else out) as key:
        return Key(key["secret"], f"'{key_file(out)}'")


def class_names(out: Path, fingerprint: str) -> tuple[str, ...]:
    """The names of a run's classes by their numbers, if the key is still beside the run directory.

    Args:
        out: the run directory.
        fingerprint: of its data, see `StudyIndex.fingerprint`.
    """
    path = key_file(out)
    if _is_there(path):
        _make_private(path)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        return tuple(json.loads(path.read_text())["classes"][fingerprint])
    return ()


def key_file(out: Path) -> Path:
    """Where the key of a run directory lies: beside it, and beside the frontier or reproduction that it is part of.

    Raises:
        InputError: that is in another run directory.
    """
    own = out.resolve()
    if own.parent.name == RUNS and known_in(own.parent.parent).get("kind") in _OF_RUNS:
        own = own.parent.parent
    if any(map(known_in, own.parents)) or (own / KEY_FILE).exists():
        raise InputError(
            f"the key of '{out}' must lie beside a run directory, not in one: name an --out that lies in no other "
            "run directory and holds none"
        )
    return own.parent / KEY_FILE


def _is_there(path: Path) -> bool:
    """Return whether a key file exists. Nothing is opened, since a pipe of that name would wait for a writer.

    Raises:
        InputError: a link, a pipe, a folder or another thing that is no regular file.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(mode):
        raise InputError(f"'{path}' should be the key of a study, and is no regular file: move it away")
    return True


def _make_private(path: Path) -> None:
    """Takes from everybody else the right to read the key, and says so."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        path.chmod(PRIVATE)
        say(
            f"note: the key file '{path}' could be read or changed by others (its mode was {mode:04o}): it is 0600 "
            "again. Whoever copied it meanwhile can tell whose image an index is."
        )


@contextlib.contextmanager
def _locked(path: Path, run: Path | None = None) -> Iterator[dict[str, Any]]:
    """The key file's content, held against other runs, and written back as a whole if it changed.

    Args:
        path: of the key.
        run: the directory of a run that was made with the key, if it holds one.
    """
    with FileLock(path.with_name(f".{path.name}.lock"), mode=PRIVATE):
        remove_leftovers(path.parent, KEY_FILE)
        if _is_there(path):
            _make_private(path)
            before = path.read_bytes()
            key = _read(path, before)
        elif run is not None and "key" in known_in(run).get("identity", ()):
            raise InputError(
                f"the key that '{run}' was made with is missing: it should be the file '{path}'. Put it back from a "
                "copy and give the same command again. Without it nobody can tell which images the rows are of: if "
                "it is lost, name another --out, or --force to discard the rows and make a new key"
            )
        else:
            before, key = b"", {"secret": secrets.token_hex(16), "images": {}, "patients": {}, "classes": {}}
        yield key
        after = json.dumps(key, indent=1).encode()
        if after != before:
            write(path, after, PRIVATE)


def _read(path: Path, content: bytes) -> dict[str, Any]:
    try:
        key = json.loads(content)
        key.setdefault("classes", {})
        if (
            isinstance(key["secret"], str)
            and len(key["secret"]) >= _SHORTEST
            and all(isinstance(key[k], dict) for k in ("images", "patients", "classes"))
        ):
            return key
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise InputError(
        f"the key file '{path}' is damaged: put back a copy, or name an --out in another folder, which gets a key of "
        "its own"
    )
