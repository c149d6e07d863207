"""A folder of sets, or of the parts of one, is no set: its folders would be taken for classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from medpfl.core.errors import InputError

__all__ = ["check_one_set"]

_INDEX = "index.csv"
_PARTS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation"})
_SHOWN = 4


def check_one_set(root: Path, found: Mapping[Path, Sequence[Path]]) -> str:
    """What to doubt of class folders that hold folders.

    Args:
        root: given as a set; an ``index.csv`` in it says that it is one.
        found: the image files of each class folder.

    Returns:
        ``""``; or, where every class folder holds several folders and no image beside them, what was taken for
        the classes and what else could be: folders of patients look the same.

    Raises:
        InputError: class folders have an ``index.csv`` of their own, or are called ``train``, ``test`` and the like.
    """
    if (root / _INDEX).exists():
        return ""
    inside = {folder: _inside(folder, files) for folder, files in found.items()}
    nested = [folder for folder, names in inside.items() if len(names) > 1]
    if sets := [folder for folder in nested if (folder / _INDEX).exists()]:
        raise InputError(f"'{root}' holds sets, each with its own class folders and {_INDEX}: give {_either(sets)}")
    if nested and all(folder.name.lower() in _PARTS for folder in found):
        raise InputError(f"'{root}' holds the parts of a set, not its classes: give {_either(nested)}")
    if not nested or any(len(names) < 2 or "" in names for names in inside.values()):
        return ""
    own = _few([folder.name for folder in found])
    inner = _few(sorted({name for names in inside.values() for name in names}))
    return (
        f"the classes are taken to be {own}, and the folders inside them ({inner}) to be parts of a class, such as "
        f"patients; if those are the classes, give {_either(nested)}"
    )


def _inside(folder: Path, files: Sequence[Path]) -> set[str]:
    """The first folder below the class folder of each image; ``""`` for an image that lies in none."""
    parts = [file.relative_to(folder).parts for file in files]
    return {own[0] if len(own) > 1 else "" for own in parts}


def _either(folders: Sequence[Path]) -> str:
    return " or ".join(f"'{folder}'" for folder in folders[:_SHOWN])


def _few(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
