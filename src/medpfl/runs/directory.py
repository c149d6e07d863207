"""Run directories: one kind, one identity, one writing process, and a separate folder for files that may be shared."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from medpfl.core.atomic_files import PRIVATE, remove_leftovers, write
from medpfl.core.errors import InputError
from medpfl.core.messages import PRIVATE_FOLDER, SHARE_FOLDER
from medpfl.core.typed import typed
from medpfl.runs.folders import check_made, check_shared, made, remove_previews

__all__ = [
    "RUNS",
    "Kind",
    "RunDirectory",
    "append",
    "holds_a_run",
    "known_in",
    "lines",
    "private_folder",
    "read_json",
    "read_lines",
    "reading",
    "share_folder",
]

RUNS = "runs"
"""Folder for the runs inside a run, each with its own run directory."""

_RUN = "run.json"

T = TypeVar("T")


def share_folder(out: Path, kind: Kind) -> Path:
    """Return the run directory's folder for files allowed to leave the hospital, and create it if necessary.

    Raises:
        InputError: it holds a file that such a run does not write.
    """
    made(out / SHARE_FOLDER)
    remove_previews(out / SHARE_FOLDER)
    check_shared(out / SHARE_FOLDER, kind.shared)
    return out / SHARE_FOLDER


def private_folder(out: Path, inside: str = "") -> Path:
    """Return the folder for patients' images, or one inside it, accessible to its owner only; create it if necessary.

    Args:
        out: the run directory.
        inside: name of a folder inside the private one.
    """
    for folder in (out / PRIVATE_FOLDER, out / PRIVATE_FOLDER / inside):
        made(folder)
        folder.chmod(0o700)
    return out / PRIVATE_FOLDER / inside


def known_in(out: Path) -> dict[str, Any]:
    """Return the content of ``run.json``, or an empty dictionary if it is missing, damaged or has no ``identity``."""
    found = read_json(out / _RUN) or {}
    return found if isinstance(found.get("identity"), dict) else {}


def holds_a_run(folder: Path) -> bool:
    """Return True if a folder is a run directory of any kind."""
    return bool(known_in(folder))


class Kind(NamedTuple):
    """The properties shared by all run directories of a kind.

    Attributes:
        name: one lower-case word, such as ``"audit"``.
        format: version of the files; other versions are neither read nor continued.
        shared: name patterns for the files that may be shared; the first is for the rows, if there are rows.
        others: name patterns for all other files that a new run replaces.
        rows: true if runs write rows; then a run without a row has nothing to keep.
    """

    name: str
    format: int
    shared: tuple[str, ...]
    others: tuple[str, ...] = ()
    rows: bool = True


@dataclass(frozen=True)
class RunDirectory:
    """A directory for one run.

    ``run.json`` identifies the run. ``share/`` may leave the hospital. ``private/`` holds patients' images, accessible
    to its owner only.

    Attributes:
        path: the directory.
        kind: the kind of run.
        identity: the settings, data and code behind the run's rows.
    """

    path: Path
    kind: Kind
    identity: Mapping[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out, and remove half-written files of a killed run.

        Raises:
            InputError: if another run is writing here.
        """
        with self._lock():
            self._remove_leftovers()
            yield

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        lock = FileLock(self.path / ".lock", timeout=0, mode=PRIVATE)
        try:
            lock.acquire()
        except Timeout:
            raise InputError(f"another run is writing to '{self.path}': wait for it, or name another --out") from None
        try:
            yield
        finally:
            lock.release()

    def _remove_leftovers(self) -> None:
        hidden = self.path / PRIVATE_FOLDER
        shared = self.path / SHARE_FOLDER
        for folder in (self.path, *shared.glob("**/"), *hidden.glob("**/"), *self.path.glob("round-*")):
            remove_leftovers(folder)
        for unfinished in self.path.glob(".round-*"):
            if unfinished.name.removeprefix(".round-").isdecimal():
                shutil.rmtree(unfinished, ignore_errors=True)
        for nested in (self.path / RUNS).glob("*/.lock"):
            with contextlib.suppress(InputError), replace(self, path=nested.parent).locked():
                pass  # if another run is writing to it, leave it alone

    def claim(self, force: bool) -> None:
        """Take the directory for this run: continue the same run, or begin a new one. The caller holds the lock.

        Neither happens while ``share/`` holds a foreign file: not even `force` removes what no run wrote.

        Args:
            force: discard another run of the same kind.

        Raises:
            InputError: if the directory holds a run of another kind or, unless `force`, a run with another identity
                or format, or with refused rows; or ``share/`` holds a file that no such run writes.
        """
        continued = self._allowed(force)
        if not continued:
            self.discard()
        share_folder(self.path, self.kind)
        if continued:
            return
        about = {"kind": self.kind.name, "format": self.kind.format, "identity": self.identity}
        write(self.path / _RUN, json.dumps(about, indent=1).encode())

    def check(self, force: bool) -> bool:
        """Return True if this run would be continued here, False if it would begin anew; nothing is written.

        Raises:
            InputError: as in `made`, `locked` and `claim`.
        """
        check_made(self.path)
        if (self.path / ".lock").is_file():
            with self._lock():
                pass
        return self._allowed(force)

    def _allowed(self, force: bool) -> bool:
        continued = self._continues(force)
        check_shared(self.path / SHARE_FOLDER, self.kind.shared)
        return continued

    def _continues(self, force: bool) -> bool:
        """Return True if the directory holds this run; raise the `InputError` of `claim` if it must not begin anew."""
        found = known_in(self.path)
        self._check_kind(found)
        if not force:
            self._check_rows(found)
        current = found.get("format") == self.kind.format and not found.get("refused")
        if current and found["identity"] == self.identity:
            return True
        if not force and found:
            self._check_format(found, "name another --out, or --force to discard it")
        if not force and self._is_anything_there(current):
            raise InputError(
                f"'{self.path}' holds another {self.kind.name} ({self._difference(found)}): name another --out, or "
                "--force to discard it"
            )
        return False

    def noted(self) -> dict[str, Any]:
        """Return the content of ``run.json``, for a run with readable rows.

        Raises:
            InputError: if this is no run directory, its kind or format differs, or its rows are refused.
        """
        found = known_in(self.path)
        if not found:
            state = "its run.json is damaged" if (self.path / _RUN).exists() else "it has no run.json"
            raise InputError(f"'{self.path}' is not a run directory: {state}")
        self._check_kind(found)
        self._check_format(found, "make its pages with that version, or run again")
        self._check_rows(found)
        return found

    def noted_as(self, form: type[T]) -> T:
        """Return notes of ``run.json``, for a run with readable rows, as a dataclass with fields of their names.

        Raises:
            InputError: as in `noted`; or a note is missing, of the wrong type, or refused by the dataclass.
        """
        found, names = self.noted(), [one.name for one in fields(form)]  # type: ignore[arg-type]
        again = "repeat the command that made it to finish it"
        if names[0] not in found:
            raise InputError(f"'{self.path}' holds an unfinished {self.kind.name}: {again}")
        try:
            return typed(form, {name: found.get(name) for name in names})
        except InputError as error:
            raise InputError(f"'{self.path}': its run.json is damaged: {error}; {again}") from None

    def note(self, **settings: Any) -> None:
        """Add settings to ``run.json``."""
        write(self.path / _RUN, json.dumps((read_json(self.path / _RUN) or {}) | settings, indent=1).encode())

    def discard(self) -> None:
        """Remove the files written by a run of this kind, rows first, and no others."""
        for path in self._written():
            path.unlink()
            with contextlib.suppress(OSError):  # not empty
                path.parent.rmdir()

    def _written(self) -> Iterator[Path]:
        """Yield the files written by a run of this kind. Runs from before `kind` existed had no folders for them."""
        found, shared, hidden = known_in(self.path), self.path / SHARE_FOLDER, self.path / PRIVATE_FOLDER
        before = (self.path, shared, hidden) if found and "kind" not in found else ()
        for name in self.kind.shared:
            for folder in before or (shared,):
                yield from folder.glob(name)
        for name in self.kind.others:
            for folder in before or (self.path if name.startswith("round-") else hidden,):
                yield from folder.glob(name)

    def _is_anything_there(self, current: bool) -> bool:
        """Return True if discarding would lose anything; a current run without a row has nothing to lose."""
        if current and self.kind.rows:
            rows = self.path / SHARE_FOLDER / self.kind.shared[0]
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
                f"the rows in '{self.path}' are refused because {refused}: repeat the command with --force, or name "
                "another --out"
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
    """Read a JSON object; return ``None`` if the file is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(path.read_text()) if path.is_file() else None
        return found if isinstance(found, dict) else None
    return None


def lines(rows: Iterable[dict[str, Any]]) -> bytes:
    """Return rows as JSON lines."""
    return b"".join(map(_line, rows))


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"


def append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows to a file, and return once they are on disk."""
    with path.open("ab") as file:
        file.write(lines(rows))
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path, parse: Callable[[Any], T], whole: bool = False) -> Iterator[T]:
    """Yield a file's rows, without a cut or damaged last line.

    Args:
        path: the file; a missing file has no rows.
        parse: function that turns a JSON value into a row.
        whole: raise an error for any other damaged line. Otherwise it is left out, and its job is done again.

    Raises:
        InputError: if `whole` and a line is damaged.
    """
    found = path.read_bytes().split(b"\n") if path.is_file() else []
    # An intact file ends with a newline; anything after the last newline was cut.
    for number, line in enumerate(found[:-1], start=1):
        try:
            row = parse(json.loads(line, parse_constant=_no_number))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if whole and number < len(found) - 1:
                raise InputError(
                    f"'{path}', line {number}, is damaged ({str(error)[:120]}): repeat the command that made the run, "
                    "with its --out, to redo that work, or delete the line"
                ) from None
            continue
        yield row


_DAMAGE = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RuntimeError)
"""Errors raised when fields with a wrong type, shape or length are read. Too deep recursion is a `RuntimeError`."""


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number in JSON")


@contextlib.contextmanager
def reading(out: Path) -> Iterator[None]:
    """Turn any error from reading a run directory into an `InputError` that names the directory.

    Another party may have written it, or an editor damaged it, so every field may be missing or have another type.
    """
    try:
        yield
    except (*_DAMAGE, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        why = f"{type(error).__name__}: {str(error)[:120]}"
        raise InputError(
            f"'{out}' cannot be read: its files are damaged or come from another version ({why}); repeat the command "
            "that made it with the same --out, or name another directory"
        ) from error
