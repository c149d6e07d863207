"""Messages to the person at the command. Names of data and paths go to a terminal, and into a log only if asked for.

A job's log is read by others, and a file or a class folder may be named for a patient. What is printed as a message
goes through `say`, which alone knows the rule.
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
from typing import Any, TextIO

from medpfl.core.errors import HIDDEN, resolved

__all__ = ["KEY_FILE", "PRIVATE_FOLDER", "SHARE_FOLDER", "about", "may_show", "say", "speaking", "told"]

_MOST = 200_000
"""Names of files and folders that are looked for in a message."""

KEY_FILE = "medpfl-key.json"
"""The file that leads back from study indices to names."""

SHARE_FOLDER, PRIVATE_FOLDER = "share", "private"
"""Folders of a run directory: what may leave the hospital, and what shows or holds patients' images."""

_LARGEST = 2**24
"""Bytes of a CSV file whose cells are looked for."""

_SHORTEST = 3
"""Characters of a name that is looked for: a shorter one is half of all words, and says little."""

_OURS = frozenset({"data", "images", "index.csv", "masks", "samples", "test", "train", "val", "validation"})
"""Names that our own messages ask for."""

_PATH = re.compile(r"(?<=')/[^'\n]+|(?<=\")/[^\"\n]+|(?<![\w'\"./>])/[^\s'\":;,()/]+(?:/[^\s'\":;,()]*)?")

_places: dict[str, None] = {}
_always: list[bool] = [False]
_typed: list[str] = []


def about(path: str | Path | None) -> None:
    """Note where private data lies: messages are kept free of its path, its names and the cells of its tables."""
    if path is not None and str(path) not in ("", ".", "/", "samples"):
        _places[str(path)] = None


@contextmanager
def speaking(always: bool, typed: Sequence[str]) -> Iterator[None]:
    """Within it, the rule is that of a command: warnings and log records of libraries are messages too.

    Args:
        always: whether names and paths may be shown wherever a message goes.
        typed: words of the command, which a message may repeat unless they say where data lies.
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
    """Whether names of data and paths may be written to a stream."""
    return _always[0] or stream.isatty()


def say(message: object, stream: TextIO | None = None) -> None:
    """Print a message on standard error, or another stream. What may not be shown there is replaced."""
    place = sys.stderr if stream is None else stream
    print(told(message, may_show(place)), file=place, flush=True)


def told(message: object, shown: bool) -> str:
    """A message as it may be printed.

    Args:
        message: a text or an error, with what `medpfl.core.errors.private` marked.
        shown: whether names and paths may be in it.
    """
    text = resolved(f"{message}", shown)
    if shown:
        return text
    hidden = _without_paths(_without_names(text))
    return f"{hidden}\n(names and paths are hidden: --show-paths shows them)" if HIDDEN in hidden else hidden


def _without_names(text: str) -> str:
    for place in _places:
        for form in sorted({place, str(Path(place).expanduser().absolute()), os.path.realpath(place)}, key=len):
            text = re.sub(rf"(?<![\w./]){re.escape(form)}(?:/[^'\"\n,;:]*)?(?![\w.-])", HIDDEN, text)
    for name in sorted({name for place in _places for name in _names_in(Path(place).expanduser())}, key=len)[::-1]:
        if name in text:
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", HIDDEN, text)
    return text


def _names_in(root: Path) -> Iterator[str]:
    """Names of what lies in a folder, and the cells of the tables in it."""
    found = 0
    below = os.walk(root) if root.is_dir() else [(root.parent, [], [root.name])]
    for base, folders, files in below:
        if "run.json" in files and SHARE_FOLDER in folders:
            folders.clear()  # of a run: what lies in it has names of ours
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
    """Without the absolute paths that nobody typed."""
    values = [word.partition("=")[2] if word.startswith("--") and "=" in word else word for word in _typed]
    heads = [value.partition("(")[0] for value in values]  # of a part, where it is
    words = {*values, *heads, *(head.rpartition(":")[0] for head in heads)} - {"", "/"}
    allowed = {os.path.abspath(word) for word in words}  # noqa: PTH100 (keeps links)
    allowed -= {os.path.abspath(place) for place in _places}  # noqa: PTH100
    allowed |= {str(Path(own).parent / KEY_FILE) for own in allowed}  # beside a run directory that was typed

    def shown(found: re.Match[str]) -> str:
        path = found[0]
        return path if any(path == own or path.startswith(own + "/") for own in allowed) else HIDDEN

    return _PATH.sub(shown, text)


def _show_warning(message: Any, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
    """What a library warns of, without the place in its source."""
    say(f"warning ({category.__name__}): {message}")


class _Messages(logging.Handler):
    """What a library logs where nobody set up a log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        say(f"{record.name}: {record.getMessage()}")
