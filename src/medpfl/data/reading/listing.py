"""Selection of the files to open in a folder of pictures. Only files named like masks are opened here."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from medpfl.core.errors import InputError, private
from medpfl.core.messages import counted
from medpfl.data.reading.decode import SUFFIXES, pillow_quiet, reason
from medpfl.data.reading.file_labels import Place, label_files, labels_given
from medpfl.data.reading.formats import ignored, kinds_of, of_other_formats
from medpfl.data.reading.masks_among_images import is_mask_picture, without_masks
from medpfl.data.reading.nested import check_no_masks, check_one_set

__all__ = ["Listing", "files_in", "first", "is_image", "list_images", "printable", "spread"]

T = TypeVar("T")
_SHOWN = 3


@dataclass(frozen=True)
class Listing:
    """Pictures found in a folder.

    Attributes:
        chosen: files to open, ordered by class and then by path.
        labels: class of each picture found.
        names: names of all image files found, relative to the folder, with ``/``.
        left_out: number of pictures that were found but not chosen.
        unread: folders that could not be searched, with the reason.
        notes: possible problems with the classes, and what was left out.
    """

    chosen: list[Path]
    labels: dict[Path, str]
    names: tuple[str, ...]
    left_out: int
    unread: dict[Path, str]
    notes: tuple[str, ...] = ()


def list_images(root: Path, limit: int) -> Listing:
    """List a folder's image files: at most `limit`, evenly over classes and files.

    The labels in ``index.csv`` give the classes of all pictures in the folder; without them, its subfolders do.

    Raises:
        InputError: the folder does not exist; it has no class folders, they hold no image, one of them holds only files
            in other formats, or they are data sets themselves or images and masks; ``index.csv`` lacks a label for some
            images; or `limit` is below the number of classes.
    """
    unread: dict[Path, str] = {}
    inside = _inside(root)
    by = _by_table if labels_given(root) else _by_folders
    labels, notes = by(root, inside, unread)
    chosen = spread(list(labels), labels.__getitem__, limit)
    names = tuple(printable(path.relative_to(root)) for path in labels)
    return Listing(chosen, labels, names, len(labels) - len(chosen), unread, tuple(notes))


def _by_table(root: Path, inside: Sequence[Path], unread: dict[Path, str]) -> tuple[dict[Path, str], list[str]]:
    """Return each picture's class according to ``index.csv``, and notes."""
    loose = [path for path in inside if not path.is_dir()]
    files = [*loose, *(file for folder in _folders(root, inside) for file in files_in(folder, unread))]
    pictures, notes = _pictures(sorted(filter(_is_picture, files)), root)
    if not pictures:
        raise InputError(f"no {_IMAGES} in '{root}'{_unsearched(root, unread)}")
    names = [printable(path.relative_to(root)) for path in pictures]
    indices, classes = label_files([Place(name) for name in names], root, None)
    labels = {path: classes[i] for path, i in zip(pictures, indices, strict=True)}
    folders = {name: label for name, label in zip(names, labels.values(), strict=True) if "/" in name}
    if len({name.partition("/")[0] for name in folders}) > 1 and any(
        name.partition("/")[0] != label for name, label in folders.items()
    ):
        notes = (f"Classes are the {len(classes)} labels in index.csv, not the folders.", *notes)
    return labels, [*notes, *of_other_formats(files, _is_picture, _READ)]


def _by_folders(root: Path, inside: Sequence[Path], unread: dict[Path, str]) -> tuple[dict[Path, str], list[str]]:
    """Return each picture's class according to its folder, and notes."""
    folders = _class_folders(root, inside)
    files = {folder: files_in(folder, unread) for folder in folders}
    images = {folder: own for folder, all_ in files.items() if (own := [f for f in all_ if is_image(f.name)])}
    every = [file for own in files.values() for file in own]
    other = of_other_formats(every, _is_picture, _READ)
    if not images:
        names = ", ".join(printable(Path(folder.name)) for folder in folders)
        others = f" (but {kinds})" if (kinds := kinds_of(ignored(every, _is_picture))) else ""
        raise InputError(f"no {_IMAGES} in the class folders of '{root}'{others}: {names}{_unsearched(root, unread)}")
    check_no_masks(root, list(images))
    empty = [folder for folder in folders if folder not in images]
    _check_other_formats(root, empty, files)
    pictures, notes = _pictures([file for own in images.values() for file in own], root)
    labels = {path: path.relative_to(root).parts[0] for path in pictures}
    held = {folder: [path for path in pictures if labels[path] == folder.name] for folder in images}
    doubt = check_one_set(root, {folder: own for folder, own in held.items() if own})
    loose = sum(is_image(path.name) and path.is_file() for path in inside)
    return labels, [
        *([doubt] if doubt else []),
        *notes,
        *([f"Left out {counted(loose, 'picture')} beside the class folders: they have no class."] if loose else []),
        *([f"Not counted as a class, because it holds no picture: {_quoted(empty)}."] if empty else []),
        *other,
    ]


def _pictures(files: Sequence[Path], root: Path) -> tuple[list[Path], tuple[str, ...]]:
    with pillow_quiet():
        pictures = without_masks(files, root, is_mask_picture)
    return pictures.images, pictures.notes


def _check_other_formats(root: Path, empty: Sequence[Path], files: dict[Path, list[Path]]) -> None:
    """Check that no folder without pictures holds files in other formats: a class would be lost.

    Raises:
        InputError: a folder does.
    """
    for folder in empty:
        if note := of_other_formats(files[folder], _is_picture, _READ):
            name = printable(Path(folder.name))
            raise InputError(
                f"the folder '{name}' in '{root}' holds no readable picture. {note[0]} Convert them, or move the "
                "folder elsewhere if it is not a class."
            )


def _quoted(folders: Sequence[Path]) -> str:
    more = len(folders) - _SHOWN
    names = ", ".join(f"'{printable(Path(folder.name))}'" for folder in folders[:_SHOWN])
    return names + (f" and {more} more" if more > 0 else "")


def _unsearched(root: Path, unread: dict[Path, str]) -> str:
    return "".join(f"; cannot search {printable(path.relative_to(root))}: {text}" for path, text in unread.items())


_READ = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
_IMAGES = f"images ({_READ})"


def _inside(root: Path) -> list[Path]:
    """Return the folder's visible contents, sorted."""
    try:
        return sorted((p for p in root.iterdir() if not p.name.startswith(".")), key=lambda p: p.name)
    except NotADirectoryError:
        raise InputError(f"'{root}' is a file: give the folder with the class folders") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot open the folder '{root}': {reason(error, root)}") from None


def _folders(root: Path, inside: Sequence[Path]) -> list[Path]:
    above = {root.resolve(), *root.resolve().parents}  # a link to one of these would contain every class
    return [path for path in inside if path.is_dir() and path.resolve() not in above]


def _class_folders(root: Path, inside: Sequence[Path]) -> list[Path]:
    folders = _folders(root, inside)
    if not folders:
        other = of_other_formats(inside, _is_picture, _READ)
        raise InputError(
            _no_class_folders(root, sum(map(_is_picture, inside))) + "".join(f"; {note}" for note in other)
        )
    return folders


def _no_class_folders(root: Path, loose: int) -> str:
    hint = f"; {loose} image(s) lie directly in it: move each into the folder of its class"
    return (
        f"'{root}' has no class folders: expected one folder per class, such as benign/0001.png and "
        f"malignant/0002.png{hint if loose else ''}"
    )


def _is_picture(path: Path) -> bool:
    return is_image(path.name)


def is_image(name: str) -> bool:
    """Return True if a file has a picture's suffix and is not hidden."""
    return Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")


def files_in(folder: Path, unread: dict[Path, str]) -> list[Path]:
    """Return all files below a folder, sorted; hidden files and folders and links to folders are left out.

    Args:
        folder: folder to search.
        unread: receives the folders that could not be searched, with the reason.
    """

    def note(error: OSError) -> None:
        unread[Path(error.filename)] = reason(error)

    found: list[Path] = []
    for base, folders, files in os.walk(folder, onerror=note):  # follows no links, so it terminates
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if (link := Path(base, name)).is_symlink():
                unread[link] = "link to a folder, not followed: give the folder itself"
        found += [Path(base, name) for name in files if not name.startswith(".")]
    return sorted(found)


def spread(units: Sequence[T], class_of: Callable[[T], Any], limit: int) -> list[T]:
    """Return at most `limit` of the units, in order: evenly over the classes and evenly over each class's units.

    Raises:
        InputError: `limit` is below the number of classes.
    """
    by_class: dict[Any, list[int]] = {}
    for i, unit in enumerate(units):
        by_class.setdefault(class_of(unit), []).append(i)
    if limit < len(by_class):
        raise InputError(f"limit={limit} is below the number of classes, {len(by_class)}: raise it")
    shares = _shares([len(own) for own in by_class.values()], limit)
    kept = [i for own, share in zip(by_class.values(), shares, strict=True) for i in _spaced(own, share)]
    return [units[i] for i in sorted(kept)]


def printable(path: Path) -> str:
    """Return the path as text that can be printed even if it is not valid UTF-8."""
    return path.as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def first(skipped: Sequence[str]) -> str:
    """Return the first few skipped files and their reasons, for an error message."""
    more = len(skipped) - _SHOWN
    text = "; ".join(skipped[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
    return private(text, f"{len(skipped)} file(s) or folder(s)") if skipped else ""


def _shares(sizes: list[int], limit: int) -> list[int]:
    """Return each class's share: as equal as the class sizes allow, at most `limit` in total.

    >>> _shares([5, 100, 2], 20), _shares([2, 2], 9)
    ([5, 13, 2], [2, 2])
    """
    shares = [0] * len(sizes)
    for done, i in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        shares[i] = min(sizes[i], (limit - sum(shares)) // (len(sizes) - done))
    return shares


def _spaced(files: list[T], count: int) -> list[T]:
    return [files[(2 * i + 1) * len(files) // (2 * count)] for i in range(count)]
