"""Which files of class folders to open; no file is opened here."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from medpfl.core.errors import InputError
from medpfl.data.decode import SUFFIXES, reason
from medpfl.data.nested import check_one_set

__all__ = ["Listing", "files_in", "first", "is_image", "list_images", "printable", "spread"]

T = TypeVar("T")
_SHOWN = 3


@dataclass(frozen=True)
class Listing:
    """What was found.

    Attributes:
        chosen: files to open, by class and then by path.
        left_out: how many more there are.
        unread: folders that could not be searched, with the reason.
        note: what to doubt of the classes; see `medpfl.data.nested.check_one_set`.
    """

    chosen: list[Path]
    left_out: int
    unread: dict[Path, str]
    note: str = ""


def list_images(root: Path, limit: int) -> Listing:
    """The image files in the class folders of `root`; at most `limit`, evenly over classes and files.

    Raises:
        InputError: there is no such folder, it has no class folders, they hold no image or are sets themselves, or
            `limit` is less than the number of classes.
    """
    folders = _class_folders(root)
    unread: dict[Path, str] = {}
    held = {folder: files for folder in folders if (files := _images_in(folder, unread))}
    found = list(held.values())
    if not found:
        why = "".join(f"; cannot search {path.relative_to(root)}: {text}" for path, text in unread.items())
        raise InputError(f"no {_IMAGES} in the class folders of '{root}': {', '.join(f.name for f in folders)}{why}")
    note = check_one_set(root, held)
    if limit < len(found):
        raise InputError(f"limit={limit} is less than the number of classes in '{root}', {len(found)}: raise it")
    shares = _shares([len(files) for files in found], limit)
    chosen = [path for files, share in zip(found, shares, strict=True) for path in _spaced(files, share)]
    return Listing(chosen, sum(map(len, found)) - len(chosen), unread, note)


_IMAGES = f"images ({', '.join(sorted(suffix[1:] for suffix in SUFFIXES))})"


def _class_folders(root: Path) -> list[Path]:
    try:
        inside = sorted((p for p in root.iterdir() if not p.name.startswith(".")), key=lambda p: p.name)
    except NotADirectoryError:
        raise InputError(f"'{root}' is a file: give the folder that holds the class folders") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot open the folder '{root}': {reason(error)}") from None
    above = {root.resolve(), *root.resolve().parents}  # a link to one of these would hold every class
    folders = [p for p in inside if p.is_dir() and p.resolve() not in above]
    if not folders:
        raise InputError(_no_class_folders(root, sum(is_image(p.name) for p in inside)))
    return folders


def _no_class_folders(root: Path, loose: int) -> str:
    hint = f"; {loose} image(s) lie directly in it: move each into a folder named for its class"
    return (
        f"'{root}' has no class folders: expected one folder a class, such as {root.name}/benign/0001.png "
        f"and {root.name}/malignant/0002.png{hint if loose else ''}"
    )


def is_image(name: str) -> bool:
    """Whether a file is named as a picture, and not hidden."""
    return Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")


def _images_in(folder: Path, unread: dict[Path, str]) -> list[Path]:
    return [path for path in files_in(folder, unread) if is_image(path.name)]


def files_in(folder: Path, unread: dict[Path, str]) -> list[Path]:
    """All files in a folder and in those inside it, sorted; hidden ones and links to folders are left out.

    Args:
        folder: to be searched.
        unread: gets the folders that could not be searched, with the reason.
    """

    def note(error: OSError) -> None:
        unread[Path(error.filename)] = reason(error)

    found: list[Path] = []
    for base, folders, files in os.walk(folder, onerror=note):  # does not follow links, so it ends
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(base, name) for name in files if not name.startswith(".")]
    return sorted(found)


def spread(units: Sequence[T], class_of: Callable[[T], Any], limit: int) -> list[T]:
    """At most `limit` of the units, evenly over classes and over each class's units, in their order.

    Raises:
        InputError: `limit` is less than the number of classes.
    """
    by_class: dict[Any, list[int]] = {}
    for i, unit in enumerate(units):
        by_class.setdefault(class_of(unit), []).append(i)
    if limit < len(by_class):
        raise InputError(f"limit={limit} is less than the number of classes, {len(by_class)}: raise it")
    shares = _shares([len(own) for own in by_class.values()], limit)
    kept = [i for own, share in zip(by_class.values(), shares, strict=True) for i in _spaced(own, share)]
    return [units[i] for i in sorted(kept)]


def printable(path: Path) -> str:
    """The name, fit to be printed even if it is not valid UTF-8."""
    return path.as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def first(skipped: Sequence[str]) -> str:
    """The first of what was skipped, for an error message."""
    more = len(skipped) - _SHOWN
    return "; ".join(skipped[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _shares(sizes: list[int], limit: int) -> list[int]:
    """As even as the sizes allow, in all at most `limit`.

    >>> _shares([5, 100, 2], 20), _shares([2, 2], 9)
    ([5, 13, 2], [2, 2])
    """
    shares = [0] * len(sizes)
    for done, i in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        shares[i] = min(sizes[i], (limit - sum(shares)) // (len(sizes) - done))
    return shares


def _spaced(files: list[T], count: int) -> list[T]:
    return [files[(2 * i + 1) * len(files) // (2 * count)] for i in range(count)]
