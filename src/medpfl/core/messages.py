"""Messages for the user. File names and paths are shown on a terminal, but in a log only on request.

Others may read a job's log, and a file or class folder may be named after a patient. All messages are printed by `say`,
which alone implements this rule.
"""

from __future__ import annotations

import csv
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from medpfl.core.errors import HIDDEN, resolved

__all__ = [
    "KEY_FILE",
    "PRIVATE_FOLDER",
    "SHARE_FOLDER",
    "Speech",
    "about",
    "counted",
    "log",
    "may_show",
    "say",
    "speaking",
    "told",
]

_LOG = logging.getLogger("medpfl")
_LOG.addHandler(logging.NullHandler())  # else Python prints warnings that no program asked for

_MOST = 200_000
"""Number of file and folder names searched for in a message."""

KEY_FILE = "medpfl-key.json"
"""The file that maps study indices to names."""

SHARE_FOLDER, PRIVATE_FOLDER = "share", "private"
"""Folders in a run directory: files that may leave the hospital, and files that show or hold patients' images."""

_LARGEST = 2**24
"""Largest CSV file, in bytes, whose cells are searched for in a message."""

_SHORTEST = 3
"""Minimum length of a name searched for in a message: shorter ones match many words, and reveal little."""

_OURS = frozenset({"data", "images", "index.csv", "masks", "samples", "test", "train", "truth", "val", "validation"})
"""Names that MedPFL's own messages use."""

_PATH = re.compile(r"(?<=')/[^'\n]+|(?<=\")/[^\"\n]+|(?<![\w'\"./>])/[^\s'\":;,()/]+(?:/[^\s'\":;,()]*)?")

_places: dict[str, None] = {}
_always: list[bool] = [False]
_typed: list[str] = []


def about(path: str | Path | None) -> None:
    """Register the location of private data. Messages then hide its path, its file names and its tables' cells."""
    if path is not None and str(path) not in ("", ".", "/", "samples"):
        _places[str(path)] = None


class Speech(NamedTuple):
    """The message rule of a command, for another process that works for it.

    Attributes:
        always, typed: as in `speaking`.
        places: locations of private data, see `about`.
    """

    always: bool
    typed: tuple[str, ...]
    places: tuple[str, ...]

    @classmethod
    def now(cls) -> Speech | None:
        """Return this process's rule; ``None`` outside `speaking`."""
        own = warnings.showwarning is _show_warning
        return cls(_always[0], tuple(_typed), tuple(_places)) if own else None

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Apply the rule in this process while the context lasts."""
        with speaking(self.always, self.typed):
            _places.update(dict.fromkeys(self.places))
            yield


@contextmanager
def speaking(always: bool, typed: Sequence[str]) -> Iterator[None]:
    """Apply the message rule to a whole command: libraries' warnings and log records go through `say` too.

    Args:
        always: True if names and paths may be shown wherever a message goes.
        typed: words of the command. A message may repeat them unless they name the location of data.
    """
    before = _always[0], list(_typed), dict(_places), warnings.showwarning, logging.lastResort
    _always[0], _typed[:] = always, typed
    _places.clear()
    warnings.showwarning, logging.lastResort = _show_warning, _Messages(logging.WARNING)
    try:
        yield
    finally:
        _always[0], _typed[:], places, warnings.showwarning, logging.lastResort = before
        _places.clear()
        _places.update(places)


def may_show(stream: TextIO) -> bool:
    """Return True if data names and paths may be written to a stream."""
    return _always[0] or stream.isatty()


def say(message: object, stream: TextIO | None = None) -> None:
    """Print a message on standard error or another stream, replacing text that may not be shown there."""
    place = sys.stderr if stream is None else stream
    print(told(message, may_show(place)), file=place, flush=True)
    log(message)


def log(message: object) -> None:
    """Write a message to the log ``medpfl``, without names and paths. Nothing is printed unless a program asks for it.

    Every message of `say` goes there too, so that ``logging.getLogger("medpfl")`` tells the course of a run.
    """
    if _LOG.isEnabledFor(logging.INFO):
        _LOG.info("%s", told(message, shown=False))


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, with a plural ``s`` unless the number is 1.

    >>> counted(1, "file"), counted(7, "patient")
    ('1 file', '7 patients')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def told(message: object, shown: bool) -> str:
    """Return a message in the form in which it may be printed.

    Args:
        message: a text or an error, with the marks of `medpfl.core.errors.private`.
        shown: True if it may contain names and paths.
    """
    text = resolved(f"{message}", shown)
    if shown:
        return text
    hidden = _without_paths(_without_names(text))
    return f"{hidden}\n(names and paths are hidden; --show-paths shows them)" if HIDDEN in hidden else hidden


def _without_names(text: str) -> str:
    for place in _places:
        for form in sorted({place, str(Path(place).expanduser().absolute()), os.path.realpath(place)}, key=len):
            text = re.sub(rf"(?<![\w./]){re.escape(form)}(?:/[^'\"\n,;:]*)?(?![\w.-])", HIDDEN, text)
    for name in sorted({name for place in _places for name in _names_in(Path(place).expanduser())}, key=len)[::-1]:
        if name in text:
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", HIDDEN, text)
    return text


def _names_in(root: Path) -> Iterator[str]:
    """Yield the names of all files and folders in a folder, and the cells of the CSV files in it."""
    found = 0
    below = os.walk(root) if root.is_dir() else [(root.parent, [], [root.name])]
    for base, folders, files in below:
        if "run.json" in files and SHARE_FOLDER in folders:
            folders.clear()  # a run directory: MedPFL chose the names in it
            continue
        for name in (*folders, *files):
            found += 1
            yield from (word for word in (name, Path(name).stem) if _counts(word))
            if name.lower().endswith(".csv"):
                yield from _cells(Path(base, name))
        if found > _MOST:
            return


def _cells(path: Path) -> Iterator[str]:
    with suppress(OSError, UnicodeDecodeError, csv.Error):
        if path.stat().st_size <= _LARGEST:
            with path.open(newline="", encoding="utf-8-sig") as file:
                rows = list(csv.reader(file))[1:]
            yield from (cell.strip() for row in rows for cell in row if _counts(cell.strip()))


def _counts(name: str) -> bool:
    return len(name) >= _SHORTEST and name.lower() not in _OURS and not name.isdecimal()


def _without_paths(text: str) -> str:
    """Return a text with every absolute path hidden, except those that the user typed."""
    values = [word.partition("=")[2] if word.startswith("--") and "=" in word else word for word in _typed]
    heads = [value.partition("(")[0] for value in values]  # the place of a user's part
    words = {*values, *heads, *(head.rpartition(":")[0] for head in heads)} - {"", "/"}
    allowed = {os.path.abspath(word) for word in words}  # noqa: PTH100 (keeps links)
    allowed -= {os.path.abspath(place) for place in _places}  # noqa: PTH100
    allowed |= {str(Path(own).parent / KEY_FILE) for own in allowed}  # beside a run directory that was typed

    def shown(found: re.Match[str]) -> str:
        path = found[0]
        return path if any(path == own or path.startswith(own + "/") for own in allowed) else HIDDEN

    return _PATH.sub(shown, text)


def _show_warning(message: Any, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
    """Print a library's warning without its place in the source."""
    say(f"warning ({category.__name__}): {message}")


class _Messages(logging.Handler):
    """The handler for libraries' log records if no log is set up."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        say(f"{record.name}: {record.getMessage()}")
