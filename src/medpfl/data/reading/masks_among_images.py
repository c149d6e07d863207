"""Masks that lie among the images: they are no patient's images, and must not be audited as such."""

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
"""Of 255: how far from black or white a lossy mask's pixels may be."""
_MOSTLY = 0.95


class Sorted(NamedTuple):
    """Files, with the masks taken out.

    Attributes:
        images: in their order.
        masks: what was taken out.
        notes: what to say of it; without the name of a file.
    """

    images: list[Path]
    masks: list[Path]
    notes: tuple[str, ...]


def without_masks(files: Sequence[Path], root: Path, is_mask: Callable[[Path], bool]) -> Sorted:
    """Take out the files that are named as masks of others among them, and hold few values.

    Such a name ends in ``_mask``, ``_mask_1``, ``_seg``, ``_segmentation`` and the like, starts so, or is that of a
    file in a folder ``masks`` or ``labels``; without that, it is the name of another file, or its beginning.

    Args:
        files: all image files of a source.
        root: of the source.
        is_mask: whether a file's values are those of a mask; called for files of such names only.
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
            f"Left out {len(masks)} mask file{_s(masks)} ({example}). To audit images with their masks, put them into "
            "folders named 'images' and 'masks'."
        )
    if doubted:
        example = _example(doubted[0].relative_to(root), keys[doubted[0]][0][1])
        notes.append(
            f"{len(doubted)} file{_s(doubted)} named as masks ({example}) hold more values than a mask does, or cannot "
            "be read: they count as images."
        )
    gone = set(masks)
    return Sorted([file for file in files if file not in gone], masks, tuple(notes))


def _s(files: Sequence[Path]) -> str:
    return "s" * (len(files) != 1)


def _key(file: Path) -> tuple[tuple[str, str], bool]:
    """Return the folder and the stem that an image and its mask have in common, and whether this is named as a mask."""
    folders = [part for part in file.parts[:-1] if not (holds_images(part) or holds_masks(part))]
    stem = re.sub(r"\.nii(\.gz)?$", "", file.name, flags=re.IGNORECASE)
    stem = PurePosixPath(stem).stem if stem == file.name else stem
    bare = _AT_END.sub("", _AT_START.sub("", stem))
    named = bare != stem or any(map(holds_masks, file.parts[:-1]))
    bare = _OF_A_KIND.sub("", bare) if named else bare
    return ("/".join(folders), _OF_AN_IMAGE.sub("", bare)), named


def _belongs(stem: str, images: Sequence[str]) -> bool:
    """Return whether one of the images in a folder has the stem, or a longer one, as ``1_flair`` has of ``1``."""
    if not stem:
        return bool(images)
    for own in images[bisect_left(images, stem) :]:
        if not own.startswith(stem):
            return False
        if not own[len(stem) : len(stem) + 1].isalnum():
            return True
    return False


def _example(inside: Path, stem: str) -> str:
    """Return what the masks are named like, without the name of the picture, which may be that of a patient."""
    folder = next((part + "/" for part in inside.parts[:-1] if holds_masks(part)), "")
    name = inside.name.replace(stem, "<picture>", 1) if stem else inside.name
    return f"names such as {folder}{name if '<picture>' in name or not stem else '<picture>' + inside.suffix}"


def is_mask_picture(path: Path) -> bool:
    """Return whether a picture has few gray values, or nearly only black and white; ``False`` if it cannot be read.

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
