"""Study indices, the pseudonyms for images and patients in all written files, and the key file to resolve them."""

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

_OF_RUNS = ("federation", "frontier", "realism", "reproduction")
"""Kinds of runs that contain other runs."""

_SHORTEST = 16
"""Minimum length of a secret; new ones have 32 characters."""


class Key:
    """A study's secret, for replacing texts that may name a person.

    Attributes:
        secret: the secret text.
        where: the key's location, for messages.
    """

    def __init__(self, secret: str, where: str = "memory") -> None:
        self.secret, self.where = secret, where

    def tag(self, kind: str, text: str) -> str:
        """Return a keyed hash of a text. It cannot be computed without the key."""
        return hmac.new(self.secret.encode(), f"{kind}:{text}".encode(), hashlib.sha256).hexdigest()[:16]


class StudyIndex(Key):
    """The study indices of a data set, keyed hashes that cannot be computed without the secret."""

    def __init__(self, secret: str, data: LabelledImages, source: str, where: str = "memory") -> None:
        super().__init__(secret, where)
        self.images = [self._index("image", f"{source}/{name}") for name in data.names]
        self.patients = [None if p is None else self._index("patient", f"{source}/{p}") for p in data.patients]

    def _index(self, kind: str, name: str) -> str:
        return f"{kind[0]}-{self.tag(kind, name)}"

    def fingerprint(self, data: LabelledImages) -> str:
        """Return a keyed hash of the data without image names; it reveals only if two data sets are equal."""
        digest = hmac.new(self.secret.encode(), digestmod=hashlib.sha256)
        for part in data.parts():
            digest.update(part.contiguous().numpy().data)
        digest.update(data.labels.numpy().tobytes())
        if data.masks is not None:
            digest.update(data.masks.numpy().tobytes())
        digest.update(json.dumps([data.classes, data.patients]).encode())
        return digest.hexdigest()[:16]


def study_index(
    out: Path | None,
    data: LabelledImages,
    source: str,
    place: str,
    force: bool = False,
    secret: str | None = None,
    keep: bool = True,
) -> StudyIndex:
    """Make pseudonyms for a data set's images and patients, and add them to the key file beside the run directory.

    Runs in one folder share the key, so an image has the same index in all of them. The runs inside a federation, a
    frontier, a realism meter or a reproduction share the key beside it.

    Args:
        out: the run directory; ``None`` writes no key and uses a random one.
        data: the images.
        source: the data's source spec, hashed with the names if `out` is ``None``.
        place: the source's location, otherwise hashed with the names. It is stored in the key file only.
        force: make a new key if the old one is missing.
        secret: if `out` is ``None``, the secret that several runs in memory share; then the names are hashed with
            `place`.
        keep: write the key file; False only reads it, and uses a random key if there is none.

    Raises:
        InputError: if the key would lie in a run directory, is damaged, or is missing although rows were made with it.
    """
    if out is None:
        return StudyIndex(secret or secrets.token_hex(16), data, place if secret else source)
    with (_locked if keep else _looked_at)(key_file(out), None if force else out) as key:
        index = StudyIndex(key["secret"], data, place, f"'{key_file(out)}'")
        # A folder may bear a patient's name: files say "class 0", and only the key holds the class name.
        key["classes"][index.fingerprint(data)] = list(data.classes)
        for name, image, patient, patient_index in zip(
            data.names, index.images, data.patients, index.patients, strict=True
        ):
            key["images"][image] = f"{place}/{name}"
            if patient_index is not None:
                key["patients"][patient_index] = patient
    return index


def key_of(out: Path, force: bool = False, keep: bool = True) -> Key:
    """Return the key for a directory of runs, and make one if there is none.

    Args:
        out: the frontier's directory.
        force: make a new key if the old one is missing.
        keep: write a new key; False only reads it, and returns a random one if there is none.

    Raises:
        InputError: as in `study_index`.
    """
    with (_locked if keep else _looked_at)(key_file(out), None if force else out) as key:
        return Key(key["secret"], f"'{key_file(out)}'")


def class_names(out: Path, fingerprint: str) -> tuple[str, ...]:
    """Return a run's class names by number; empty if the key file is missing, unreadable or made for other data.

    A key file that others can access is restricted to its owner, and a note is printed.

    Args:
        out: the run directory.
        fingerprint: the data's fingerprint, see `StudyIndex.fingerprint`.

    Raises:
        InputError: as in `key_file`, or if the key is not a regular file.
    """
    path = key_file(out)
    if _is_there(path):
        _make_private(path)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        return tuple(json.loads(path.read_text())["classes"][fingerprint])
    return ()


def key_file(out: Path) -> Path:
    """Return the path of a run's key file, beside its directory (or that of an enclosing run).

    Raises:
        InputError: if that place lies inside another run directory, or the run directory holds a key itself.
    """
    own = out.resolve()
    if own.parent.name == RUNS and known_in(own.parent.parent).get("kind") in _OF_RUNS:
        own = own.parent.parent
    if any(map(known_in, own.parents)) or (own / KEY_FILE).exists():
        raise InputError(
            f"the key for '{out}' must lie beside a run directory, not inside one: name an --out that neither lies in "
            "another run directory nor holds a key file"
        )
    return own.parent / KEY_FILE


def _is_there(path: Path) -> bool:
    """Return True if a key file exists. The file is not opened, since a pipe of that name would wait for a writer.

    Raises:
        InputError: if it is a link, pipe, folder or anything else but a regular file.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(mode):
        raise InputError(f"'{path}' should be a study's key but is not a regular file: move it away")
    return True


def _make_private(path: Path) -> None:
    """Restrict the key file to its owner, and print a note if others could access it."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        path.chmod(PRIVATE)
        say(
            f"note: others could read or change the key file '{path}' (mode {mode:04o}); it is 0600 again. Anyone who "
            "copied it can tell whose image an index stands for."
        )


def _new() -> dict[str, Any]:
    return {"secret": secrets.token_hex(16), "images": {}, "patients": {}, "classes": {}}


@contextlib.contextmanager
def _looked_at(path: Path, run: Path | None = None) -> Iterator[dict[str, Any]]:
    """Yield the key file's content, or that of a new key. Nothing is written. `run` is as in `_locked`."""
    if _is_there(path):
        yield _read(path, path.read_bytes())
        return
    _check_not_lost(path, run)
    yield _new()


def _check_not_lost(path: Path, run: Path | None) -> None:
    """Raise `InputError` if there was a key for a run, now that there is none."""
    if run is not None and "key" in known_in(run).get("identity", ()):
        raise InputError(
            f"the key for '{run}' is missing: it should be the file '{path}'. Restore it from a copy and repeat "
            "the command. Without it, nobody can tell which images the rows belong to. If it is lost, name "
            "another --out, or use --force to discard the rows and make a new key"
        )


@contextlib.contextmanager
def _locked(path: Path, run: Path | None = None) -> Iterator[dict[str, Any]]:
    """Yield the key file's content under a lock, and write it back as a whole if it changed.

    Args:
        path: the key file.
        run: directory of a run that may have been made with the key; if so, a missing key is an error.
    """
    with FileLock(path.with_name(f".{path.name}.lock"), mode=PRIVATE):
        remove_leftovers(path.parent, KEY_FILE)
        if _is_there(path):
            _make_private(path)
            before = path.read_bytes()
            key = _read(path, before)
        else:
            _check_not_lost(path, run)
            before, key = b"", _new()
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
