"""Detection of folders that are not classes: data sets, splits, and images beside their masks."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from medpfl.core.errors import InputError
from medpfl.data.reading.index import INDEX

__all__ = ["are_parts", "check_no_masks", "check_one_set", "check_parts", "holds_images", "holds_masks"]

_PARTS = frozenset(
    {"train", "training", "test", "testing", "val", "valid", "validation", "imagestr", "imagests", "imagesval"}
)
_SHOWN = 4
_OF_IMAGES = re.compile(r"(images?|imgs?)(tr|ts|val)?|imagings?|pictures?|scans?|volumes?", re.IGNORECASE)
_OF_MASKS = re.compile(
    r"(labels?|masks?)(tr|ts|val)?|segs?|segmentations?|gts?|ground[_ -]?truths?|annotations?|labelmaps?", re.IGNORECASE
)


def holds_images(folder: str) -> bool:
    """Return True if a folder's name says that it holds images (as opposed to their masks)."""
    return _OF_IMAGES.fullmatch(folder) is not None


def holds_masks(folder: str) -> bool:
    """Return True if a folder's name says that it holds masks."""
    return _OF_MASKS.fullmatch(folder) is not None


def are_parts(folders: Collection[str]) -> bool:
    """Return True if all folders are named like splits of a data set, such as train and test."""
    return bool(folders) and all(name.lower() in _PARTS for name in folders)


def check_parts(root: Path, files: Collection[str]) -> None:
    """Check that folders named like splits hold no class folders.

    Args:
        root: the source's folder.
        files: paths relative to `root`, each inside one of its folders.

    Raises:
        InputError: one of the folders holds several folders.
    """
    inside: dict[str, set[str]] = {}
    for folder, *more in (file.split("/") for file in files):
        inside.setdefault(folder, set()).add(more[0] if len(more) > 1 else "")
    if nested := sorted(folder for folder, names in inside.items() if len(names) > 1):
        raise InputError(_PARTS_OF_A_SET.format(root=root, folders=_either([root / folder for folder in nested])))


_PARTS_OF_A_SET = "'{root}' holds splits of a data set, not classes: give {folders}"


def check_no_masks(root: Path, folders: Sequence[Path]) -> None:
    """Check that the folders taken for classes are not images and their masks.

    Raises:
        InputError: one folder is named for images and another for masks.
    """
    images = [folder for folder in folders if holds_images(folder.name)]
    masks = [folder for folder in folders if holds_masks(folder.name)]
    if images and masks:
        raise InputError(
            f"'{root}' holds folders of images and masks ({_few([f.name for f in (*images, *masks)])}), not classes. "
            f"To audit only the images, give {_either(images)}, with class folders in it or an {INDEX} with "
            "labels. To audit images with masks, name the folders 'images' and 'masks'"
        )


def check_one_set(root: Path, found: Mapping[Path, Sequence[Path]]) -> str:
    """Return a warning if class folders hold folders, which may be the real classes.

    Args:
        root: the folder given as a data set; an ``index.csv`` in it confirms that it is one.
        found: image files of each class folder.

    Returns:
        A warning if every class folder holds several folders and no image beside them; else ``""``. The warning states
        what was taken for the classes and what else they could be, since patient folders look the same.

    Raises:
        InputError: class folders have an ``index.csv`` of their own, or are called ``train``, ``test`` and the like.
    """
    if (root / INDEX).exists():
        return ""
    inside = {folder: _inside(folder, files) for folder, files in found.items()}
    nested = [folder for folder, names in inside.items() if len(names) > 1]
    if sets := [folder for folder in nested if (folder / INDEX).exists()]:
        raise InputError(f"'{root}' holds several data sets, each with class folders and {INDEX}: give {_either(sets)}")
    if nested and are_parts([folder.name for folder in found]):
        raise InputError(_PARTS_OF_A_SET.format(root=root, folders=_either(nested)))
    if not nested or any(len(names) < 2 or "" in names for names in inside.values()):
        return ""
    own = _few([folder.name for folder in found])
    inner = _few(sorted({name for names in inside.values() for name in names}))
    return (
        f"Classes are the folders {own}; the folders inside them ({inner}) are taken for parts of a class, such as "
        f"patients. If the inner folders are the classes, give {_either(nested)}"
    )


def _inside(folder: Path, files: Sequence[Path]) -> set[str]:
    """Return the first folder below the class folder for each image; ``""`` if it lies directly in the class folder."""
    parts = [file.relative_to(folder).parts for file in files]
    return {own[0] if len(own) > 1 else "" for own in parts}


def _either(folders: Sequence[Path]) -> str:
    return " or ".join(f"'{folder}'" for folder in folders[:_SHOWN])


def _few(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
