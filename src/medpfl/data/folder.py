"""A folder of pictures: one folder a class, as torchvision's ``ImageFolder`` has it, or labels in a table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.data.images import LabelledImages
from medpfl.data.reading.decode import decode, pillow_quiet, reason
from medpfl.data.reading.index import read_patients
from medpfl.data.reading.listing import first, list_images, printable
from medpfl.data.reading.resize import Fit, fitted, stacked
from medpfl.data.target import LimitedTarget, Located

__all__ = ["ImageFolder"]


@dataclass(frozen=True, repr=False)
class ImageFolder(LimitedTarget, Located):
    """PNG, JPEG, BMP and TIFF pictures, with classes and patients from ``index.csv``, or classes from their folders.

    A column ``label`` (or ``class``) beside ``file`` in ``index.csv`` gives the classes; without it, they are the
    folders. Files that are named as masks of others (``a_mask.png`` beside ``a.png``) and hold few values are left out.
    Files that cannot be read are skipped and listed. What is transparent becomes black; orientation
    tags are obeyed; of several pages the first counts. Gray is divided by 255 or 65535, as stored.

    Attributes:
        path: holds one folder a class, or ``index.csv`` with labels; folders inside those are searched, hidden
            ones and links to folders inside them are not.
        size, fit, channels, limit: as in `medpfl.data.target.LimitedTarget`.

    Raises:
        InputError: an argument is out of range.
    """

    def load(self) -> LabelledImages:
        """The pictures, by class and then by file. A class of which none could be read is left out.

        Raises:
            InputError: there is no such folder; it has no class folders, one of them holds other formats only, or they
                are sets themselves or images and masks; no picture can be read; `limit` is less than the number of
                classes; or ``index.csv`` is malformed, or does not fit the files.
        """
        root = Path(self.path).expanduser()
        listing = list_images(root, self.limit)
        patients = read_patients(root, listing.names)
        read = _read_all(listing.chosen, self.size, self.fit)
        images = {path: image for path, image in read.items() if isinstance(image, Tensor)}
        unread = listing.unread | {path: why for path, why in read.items() if isinstance(why, str)}
        skipped = tuple(f"{printable(path.relative_to(root))}: {why}" for path, why in unread.items())
        if not images:
            raise InputError(f"no image in '{root}' could be read: {first(skipped)}")
        classes = sorted({listing.labels[path] for path in images})
        lost = sorted({listing.labels[path] for path in listing.chosen} - set(classes))
        files = [path.relative_to(root) for path in images]
        return LabelledImages(
            images=stacked(list(images.values()), self.channels),
            labels=torch.tensor([classes.index(listing.labels[path]) for path in images]),
            classes=tuple(printable(Path(name)) for name in classes),
            names=tuple(map(printable, files)),
            patients=tuple(patients.of(printable(file)) for file in files),
            skipped=skipped,
            left_out=listing.left_out,
            notes=(*listing.notes, *patients.notes, *(_LOST.format(name=printable(Path(name))) for name in lost)),
        )


_LOST = "No picture of the class '{name}' could be read, so that it is left out."


def _read_all(files: Sequence[Path], size: int, fit: Fit) -> Mapping[Path, Tensor | str]:
    """Each picture, or why it could not be read."""

    def read(path: Path) -> Tensor | str:
        try:
            return fitted(decode(path), size, fit)
        except Exception as error:  # a broken file makes Pillow raise almost anything
            return reason(error, path)

    with pillow_quiet(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(files, pool.map(read, files), strict=True))
