"""The directory of a run: of one kind and one identity, written by one process, with what may be shared kept apart."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from medpfl.core.atomic_files import PRIVATE, remove_leftovers, write
from medpfl.core.errors import InputError
from medpfl.core.messages import PRIVATE_FOLDER, SHARE_FOLDER

__all__ = [
    "RUNS",
    "Kind",
    "RunDirectory",
    "append",
    "check_outside",
    "holds_a_run",
    "known_in",
    "lines",
    "made",
    "private_folder",
    "read_json",
    "read_lines",
    "reading",
    "share_folder",
]

RUNS = "runs"
"""Folder for the runs that a run is made of, each a run directory of its own."""

_RUN = "run.json"

T = TypeVar("T")


def check_outside(out: Path | None, place: str) -> None:
    """Raises `InputError` for a run directory in the data folder."""
    if out is not None and Path(place).is_dir() and out.resolve().is_relative_to(place):
        raise InputError(f"--out '{out}' lies in the data folder, where its pictures would be data: name another one")


def made(out: Path) -> None:
    """Makes the run directory."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a null byte
        why = getattr(error, "strerror", None) or error
        raise InputError(f"--out '{out}' cannot be made ({why}): name another one") from error


def share_folder(out: Path) -> Path:
    """Return the folder of a run directory that may leave the hospital. It is made if it is not there."""
    made(out / SHARE_FOLDER)
    return out / SHARE_FOLDER


def private_folder(out: Path, inside: str = "") -> Path:
    """Return the folder for patients' images, or one inside it, open to its owner alone. It is made if it is not there.

    Args:
        out: the run directory.
        inside: name of a folder in the private one.
    """
    for folder in (out / PRIVATE_FOLDER, out / PRIVATE_FOLDER / inside):
        made(folder)
        folder.chmod(0o700)
    return out / PRIVATE_FOLDER / inside


def known_in(out: Path) -> dict[str, Any]:
    """Return what ``run.json`` says, with at least an ``identity``; empty for no run directory, or a damaged one."""
    found = read_json(out / _RUN) or {}
    return found if isinstance(found.get("identity"), dict) else {}


def holds_a_run(folder: Path) -> bool:
    """Return whether a folder is a run directory of any kind."""
    return bool(known_in(folder))


class Kind(NamedTuple):
    """What all run directories of a kind have in common.

    Attributes:
        name: one lower-case word, such as ``"audit"``.
        format: version of what lies there; no other one is read or continued.
        outputs: patterns of the names of all files that are written; the first is that of the rows, if there are rows.
        rows: whether there are rows, so that without one there is nothing to keep.
    """

    name: str
    format: int
    outputs: tuple[str, ...]
    rows: bool = True


@dataclass(frozen=True)
class RunDirectory:
    """A directory that holds one run.

    ``run.json`` says what the run is of. ``share/`` may leave the hospital. ``private/`` holds patients' images, open
    to its owner alone.

    Attributes:
        path: the directory.
        kind: of the run.
        identity: what the rows of the run are a function of.
    """

    path: Path
    kind: Kind
    identity: Mapping[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out, and remove what a killed one left half-written.

        Raises:
            InputError: another run is writing here.
        """
        lock = FileLock(self.path / ".lock", timeout=0, mode=PRIVATE)
        try:
            lock.acquire()
        except Timeout:
            raise InputError(f"another run is writing to '{self.path}': wait for it, or name another --out") from None
        try:
            self._remove_leftovers()
            yield
        finally:
            lock.release()

    def _remove_leftovers(self) -> None:
        hidden = self.path / PRIVATE_FOLDER
        for folder in (self.path, self.path / SHARE_FOLDER, *hidden.glob("**/"), *self.path.glob("round-*")):
            remove_leftovers(folder)
        for unfinished in self.path.glob(".round-*"):
            if unfinished.name.removeprefix(".round-").isdecimal():
                shutil.rmtree(unfinished, ignore_errors=True)
        for nested in (self.path / RUNS).glob("*/.lock"):
            with contextlib.suppress(InputError), replace(self, path=nested.parent).locked():
                pass  # unless another run is writing to it

    def claim(self, force: bool) -> None:
        """Take the directory for this run: go on with the same one, or begin. The caller holds the lock.

        Args:
            force: discards another run of the same kind.

        Raises:
            InputError: the directory holds a run of another kind, or, unless `force`, one of another identity or
                format, or one whose rows are refused.
        """
        found = known_in(self.path)
        self._check_kind(found)
        if not force:
            self._check_rows(found)
        current = found.get("format") == self.kind.format and not found.get("refused")
        if current and found["identity"] == self.identity:
            return
        if not force and found:
            self._check_format(found, "name another --out, or --force to discard it")
        if not force and self._is_anything_there(current):
            raise InputError(
                f"'{self.path}' holds another {self.kind.name} ({self._difference(found)}): name another --out, or "
                "--force to discard it"
            )
        self.discard()
        share_folder(self.path)
        about = {"kind": self.kind.name, "format": self.kind.format, "identity": self.identity}
        write(self.path / _RUN, json.dumps(about, indent=1).encode())

    def noted(self) -> dict[str, Any]:
        """Return what ``run.json`` says, of a run whose rows can be read.

        Raises:
            InputError: no run directory, one of another kind or format, or one whose rows are refused.
        """
        found = known_in(self.path)
        if not found:
            state = "its run.json is damaged" if (self.path / _RUN).exists() else "it has no run.json"
            raise InputError(f"'{self.path}' is no run directory: {state}")
        self._check_kind(found)
        self._check_format(found, "make its pages with that version, or run again")
        self._check_rows(found)
        return found

    def note(self, **settings: Any) -> None:
        """Add settings to ``run.json``."""
        write(self.path / _RUN, json.dumps((read_json(self.path / _RUN) or {}) | settings, indent=1).encode())

    def discard(self) -> None:
        """Remove what a run of this kind wrote, rows first, and nothing else that may lie there."""
        for path in self._written():
            path.unlink()
            with contextlib.suppress(OSError):  # not empty
                path.parent.rmdir()

    def _written(self) -> Iterator[Path]:
        """Yield what a run of this kind wrote. Before a run stated its kind, it had no folders for its files."""
        found = known_in(self.path)
        inside = (self.path / SHARE_FOLDER, self.path / PRIVATE_FOLDER)
        before = (self.path, *inside) if found and "kind" not in found else inside
        for name in self.kind.outputs:
            for folder in (self.path, *inside) if name.startswith("round-") else before:
                yield from folder.glob(name)

    def _is_anything_there(self, current: bool) -> bool:
        """Return whether anything would be lost; a current run that ended before its first row has nothing."""
        if current and self.kind.rows:
            rows = self.path / SHARE_FOLDER / self.kind.outputs[0]
            return rows.is_file() and rows.stat().st_size > 0
        return current or any(self._written())

    def _check_kind(self, found: Mapping[str, Any]) -> None:
        kind = found.get("kind", self.kind.name)
        if kind != self.kind.name:
            its = _a(kind) if isinstance(kind, str) and kind.isidentifier() else "something else"
            raise InputError(f"'{self.path}' holds {its}, not {_a(self.kind.name)}: name another --out")

    def _check_format(self, found: Mapping[str, Any], remedy: str) -> None:
        if (its := found.get("format", 1)) != self.kind.format:
            raise InputError(
                f"'{self.path}' was made by another version of MedPFL: its format is {its}, this version's is "
                f"{self.kind.format}; {remedy}"
            )

    def _check_rows(self, found: Mapping[str, Any]) -> None:
        if refused := found.get("refused"):
            raise InputError(
                f"the rows in '{self.path}' are refused, since {refused}: give the same command again with --force, or "
                "name another --out"
            )

    def _difference(self, found: Mapping[str, Any]) -> str:
        if not found:
            return "its run.json is missing or damaged"
        old = found["identity"]
        if hasattr(self.identity, "told"):  # an `Identity` knows how to say it
            return "; ".join(self.identity.told(old))  # type: ignore[attr-defined]
        changed = [k for k in self.identity if old.get(k) != self.identity[k]]
        return "other " + ", ".join([*changed, *(k for k in old if k not in self.identity)][:4])


def _a(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or ``None`` if the file is not there or not whole."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(path.read_text()) if path.is_file() else None
        return found if isinstance(found, dict) else None
    return None


def lines(rows: Iterable[dict[str, Any]]) -> bytes:
    """Rows as JSON, a line each."""
    return b"".join(map(_line, rows))


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"


def append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Adds rows to a file; they are on the disk when it returns."""
    with path.open("ab") as file:
        file.write(lines(rows))
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path, parse: Callable[[Any], T], whole: bool = False) -> Iterator[T]:
    """The rows of a file; a last line that was cut or is damaged is left out.

    Args:
        path: the file; none if it is not there.
        parse: makes a row of what JSON holds.
        whole: whether another damaged line is an error; if not, it is left out too, and its job is done again.

    Raises:
        InputError: a line that is no row, if `whole`.
    """
    found = path.read_bytes().split(b"\n") if path.is_file() else []
    # A file that is whole ends with a newline, so that what stands after the last one was cut.
    for number, line in enumerate(found[:-1], start=1):
        try:
            row = parse(json.loads(line, parse_constant=_no_number))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if whole and number < len(found) - 1:
                raise InputError(
                    f"'{path}', line {number}, is damaged ({str(error)[:120]}): give the command that made the run "
                    "again with its --out, which does that work anew, or delete the line"
                ) from None
            continue
        yield row


_DAMAGE = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RuntimeError)
"""Errors that fields of another type, shape or length raise when they are read; recursion is a `RuntimeError`."""


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number in JSON")


@contextlib.contextmanager
def reading(out: Path) -> Iterator[None]:
    """Whatever fails inside, while a run directory is read back, is for the person who has that directory.

    Another party may have written it, or an editor damaged it: every field may be missing or of another type.
    """
    try:
        yield
    except (*_DAMAGE, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        why = f"{type(error).__name__}: {str(error)[:120]}"
        raise InputError(
            f"'{out}' cannot be read back: its files are damaged, or of another version ({why}); give the command that "
            "made it again with the same --out, or name another directory"
        ) from error
