"""What every run directory has: who writes to it, what it is of, and rows, a line each."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from medpfl.core.atomic_files import PRIVATE, remove_leftovers, write
from medpfl.core.errors import InputError

__all__ = [
    "RUN",
    "append",
    "check_outside",
    "check_rows",
    "difference",
    "identity_in",
    "is_of",
    "lines",
    "locked",
    "made",
    "note",
    "read_json",
    "read_lines",
    "reading",
]

RUN = "run.json"
"""What a run directory is of."""

_INSIDE = ("images", "pictures", "runs")

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


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keeps other runs out of the directory."""
    descriptor = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, PRIVATE)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another run is writing to '{out}': wait for it, or name another --out") from None
        _tidy(out)
        yield
    finally:
        os.close(descriptor)


def _tidy(out: Path) -> None:
    """Removes half-written files of a run that was killed, those of the runs that it was made of too."""
    for folder in (out, *(out / name for name in _INSIDE), *out.glob("round-*")):
        remove_leftovers(folder)
    for unfinished in out.glob(".round-*"):
        if unfinished.name.removeprefix(".round-").isdecimal():
            shutil.rmtree(unfinished, ignore_errors=True)
    for nested in (out / "runs").glob("*/.lock"):
        with contextlib.suppress(InputError), locked(nested.parent):  # another run may be writing to it
            pass


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or ``None`` if the file is not there or not whole."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(path.read_text()) if path.is_file() else None
        return found if isinstance(found, dict) else None
    return None


def identity_in(run: dict[str, Any] | None) -> dict[str, Any]:
    """Return the identity in a run's ``run.json``; empty where there is none, or one of another type."""
    found = (run or {}).get("identity")
    return found if isinstance(found, dict) else {}


def is_of(kind: str, out: Path) -> bool:
    """Whether a directory is that of a ``"training"`` or a ``"frontier"``."""
    return kind in identity_in(read_json(out / RUN))


def note(out: Path, **settings: Any) -> None:
    """Adds settings to ``run.json``."""
    write(out / RUN, json.dumps((read_json(out / RUN) or {}) | settings, indent=1).encode())


def difference(found: dict[str, Any] | None, identity: dict[str, Any]) -> str:
    """In what an experiment that was found in a directory differs from another one."""
    if found is None:
        return "its run.json is missing or damaged"
    old = identity_in(found)
    if hasattr(identity, "told"):  # an `Identity` knows how to say it
        return "; ".join(identity.told(old))  # type: ignore[attr-defined]
    changed = [k for k in identity if old.get(k) != identity[k]] + [k for k in old if k not in identity]
    return "other " + ", ".join(changed[:4])


def check_rows(out: Path, run: dict[str, Any] | None) -> None:
    """Raises `InputError` if the rows of a run are refused; its ``run.json`` is given."""
    if refused := (run or {}).get("refused"):
        raise InputError(
            f"the rows in '{out}' are refused, since {refused}: give the same command again with --force, or name "
            "another --out"
        )


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
