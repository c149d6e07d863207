"""Detection of mask files among images. A mask is not a patient's image and must not be audited as one."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from medpfl.data.reading.decode import FORMATS
from medpfl.data.reading.masks import MOST
from medpfl.data.reading.nested import holds_images, holds_masks

__all__ = ["Sorted", "is_mask_picture", "without_masks"]

_WORDS = r"(?:masks?|d?segm?|segmentations?|labels?|labelmaps?|gts?|ground[_ -]?truths?|annotations?)"
_AT_END = re.compile(rf"(?:^|[ ._-]+){_WORDS}(?:[ ._-]?\d{{1,3}})?$", re.IGNORECASE)
_AT_START = re.compile(rf"^{_WORDS}[ ._-]+", re.IGNORECASE)
_OF_AN_IMAGE = re.compile(r"^(?:images?|imgs?|imaging|volume|scan|picture)(?:[ ._-]+|$)", re.IGNORECASE)
_OF_A_KIND = re.compile(r"_(?:desc|label|res|space)-[A-Za-z0-9]+", re.IGNORECASE)  # in BIDS names
_NEAR = 24
"""Largest distance, out of 255, between a lossy mask's pixel and black or white."""
_MOSTLY = 0.95


class Sorted(NamedTuple):
    """Files, separated into images and masks.

    Attributes:
        images: images, in their order.
        masks: masks that were left out.
        notes: notes about them, without file names.
    """

    images: list[Path]
    masks: list[Path]
    notes: tuple[str, ...]


def without_masks(files: Sequence[Path], root: Path, is_mask: Callable[[Path], bool]) -> Sorted:
    """Leave out files that are named like another file's mask and hold few values.

    The name of such a file starts or ends with ``_mask``, ``_mask_1``, ``_seg``, ``_segmentation`` and the like, or the
    file lies in a folder ``masks`` or ``labels``. Without that part, its name equals another file's name or starts it.

    Args:
        files: all image files of a source.
        root: the source's folder.
        is_mask: predicate that is True if a file's values are those of a mask; called only for files with such names.
    """
    keys = {file: _key(file.relative_to(root)) for file in files}
    named = [file for file, (_, is_named) in keys.items() if is_named]
    if not named:
        return Sorted(list(files), [], ())
    stems: dict[str, set[str]] = {}
    for (folder, stem), is_named in keys.values():
        if not is_named:
            stems.setdefault(folder, set()).add(stem)
    beside = {folder: sorted(own) for folder, own in stems.items()}
    paired = [file for file in named if _belongs(keys[file][0][1], beside.get(keys[file][0][0], []))]
    with ThreadPoolExecutor(min(8, cpu_count() or 1)) as pool:
        told = dict(zip(paired, pool.map(is_mask, paired), strict=True))
    masks = [file for file, yes in told.items() if yes]
    doubted = [file for file, yes in told.items() if not yes]
    notes = []
    if masks:
        example = _example(masks[0].relative_to(root), keys[masks[0]][0][1])
        notes.append(
            f"Left out {len(masks)} mask file{_s(masks)} ({example}). To audit images with their masks, put them in "
            "folders named 'images' and 'masks'."
        )
    if doubted:
        example = _example(doubted[0].relative_to(root), keys[doubted[0]][0][1])
        notes.append(
            f"Counted {len(doubted)} file{_s(doubted)} named like masks ({example}) as images: too many values for a "
            "mask, or not readable."
        )
    gone = set(masks)
    return Sorted([file for file in files if file not in gone], masks, tuple(notes))


def _s(files: Sequence[Path]) -> str:
    return "s" * (len(files) != 1)


def _key(file: Path) -> tuple[tuple[str, str], bool]:
    """Return the folder and stem that an image shares with its mask, and True if this file is named like a mask."""
    folders = [part for part in file.parts[:-1] if not (holds_images(part) or holds_masks(part))]
    stem = re.sub(r"\.nii(\.gz)?$", "", file.name, flags=re.IGNORECASE)
    stem = PurePosixPath(stem).stem if stem == file.name else stem
    bare = _AT_END.sub("", _AT_START.sub("", stem))
    named = bare != stem or any(map(holds_masks, file.parts[:-1]))
    bare = _OF_A_KIND.sub("", bare) if named else bare
    return ("/".join(folders), _OF_AN_IMAGE.sub("", bare)), named


def _belongs(stem: str, images: Sequence[str]) -> bool:
    """Return True if an image in the folder has this stem or a longer one (``1_flair`` for ``1``)."""
    if not stem:
        return bool(images)
    for own in images[bisect_left(images, stem) :]:
        if not own.startswith(stem):
            return False
        if not own[len(stem) : len(stem) + 1].isalnum():
            return True
    return False


def _example(inside: Path, stem: str) -> str:
    """Return a sample mask name without the picture's name, which may be a patient's."""
    folder = next((part + "/" for part in inside.parts[:-1] if holds_masks(part)), "")
    name = inside.name.replace(stem, "<picture>", 1) if stem else inside.name
    return f"names such as {folder}{name if '<picture>' in name or not stem else '<picture>' + inside.suffix}"


def is_mask_picture(path: Path) -> bool:
    """Return True if a picture has few colors or is almost only black and white; False if it cannot be read.

    Call it within `medpfl.data.reading.decode.pillow_quiet`.
    """
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            if image.getcolors(MOST) is not None:
                return True
            gray = np.asarray(image.convert("L"))
    except Exception:  # a broken file makes Pillow raise almost anything; reading it will say why
        return False
    low, high = int(gray.min()), int(gray.max())
    return bool(((gray <= low + _NEAR) | (gray >= high - _NEAR)).mean() > _MOSTLY)
