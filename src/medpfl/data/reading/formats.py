"""Counts of files that are ignored because of their format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from medpfl.core.messages import counted

__all__ = ["ignored", "is_text", "kinds_of", "of_other_formats"]

_TEXTS = frozenset(
    {
        ".bib", ".bval", ".bvec", ".cfg", ".csv", ".db", ".doc", ".docx", ".htm", ".html", ".ini", ".ipynb", ".json",
        ".lock", ".log", ".md", ".pdf", ".py", ".rst", ".sh", ".tex", ".toml", ".tsv", ".txt", ".xls", ".xlsx", ".xml",
        ".yaml", ".yml",
    }
)  # fmt: skip
_PROSE = ("readme", "license", "licence", "changes", "authors", "citation", "makefile", "md5sums", "sha256sums")
_LONGEST_SUFFIX = 8
_SHOWN = 3


def of_other_formats(files: Iterable[Path], is_read: Callable[[Path], bool], formats: str) -> tuple[str, ...]:
    """Return a note that counts the files ignored because of their format; empty if there are none.

    Text files and tables are not counted.

    Args:
        files: all files found.
        is_read: predicate that is True for a file that is read.
        formats: names of the supported formats.
    """
    others = ignored(files, is_read)
    if not others:
        return ()
    of = f"{counted(len(others), 'file')} in other formats ({kinds_of(others)})"
    return (f"Left out {of}. Supported formats: {formats}.",)


def ignored(files: Iterable[Path], is_read: Callable[[Path], bool]) -> list[Path]:
    """Return the files that are not read, except text files and tables."""
    return [path for path in files if not is_read(path) and not is_text(path)]


def is_text(path: Path) -> bool:
    """Return True if a file's name is that of a text, table or program, which often lie beside images."""
    return path.suffix.lower() in _TEXTS or path.stem.lower() in _PROSE or path.name.lower() == "dicomdir"


def kinds_of(files: Sequence[Path]) -> str:
    """Return the number of files per suffix, as text.

    >>> kinds_of([Path("a.webp"), Path("b.webp"), Path("c"), Path("1.2.840.10008.123456789012")])
    '2 .webp, 1 without a suffix, 1 others'
    """
    suffixes = (path.suffix.lower() for path in files)
    kinds = Counter("without a suffix" if not s else s if len(s) <= _LONGEST_SUFFIX else "others" for s in suffixes)
    shown = [f"{count} {kind}" for kind, count in kinds.most_common(_SHOWN)]
    return ", ".join(shown) + ", ..." * (len(kinds) > _SHOWN)
