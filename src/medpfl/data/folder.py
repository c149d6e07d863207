"""A folder of pictures: one subfolder per class, like torchvision's ``ImageFolder``, or labels in a table."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.data.images import LabelledImages
from medpfl.data.on_disk import batched, gathered
from medpfl.data.reading.decode import decode, pillow_quiet, reason
from medpfl.data.reading.index import read_patients
from medpfl.data.reading.listing import first, list_images, printable
from medpfl.data.reading.resize import fitted
from medpfl.data.target import LimitedTarget, Located

__all__ = ["ImageFolder"]


@dataclass(frozen=True, repr=False)
class ImageFolder(LimitedTarget, Located):
    """PNG, JPEG, BMP and TIFF pictures with classes and patients from ``index.csv``, or classes from folder names.

    A ``label`` (or ``class``) column next to ``file`` in ``index.csv`` gives the classes; without it, folder names do.
    Files that are named like another file's mask (``a_mask.png`` beside ``a.png``) and hold few values are left out.
    Unreadable files are skipped and listed. Transparent pixels become black, orientation tags are applied, and only the
    first page of a file counts. Gray values are divided by 255 or 65535, depending on the stored bit depth.

    Attributes:
        path: A folder with one subfolder per class, or with an ``index.csv`` that gives labels. Class folders are
            searched recursively, except for hidden folders and links to folders.
        size, fit, channels, limit: as in `medpfl.data.target.LimitedTarget`.

    Raises:
        InputError: an argument is out of range.
    """

    def load(self) -> LabelledImages:
        """Return the pictures, ordered by class and then by file. A class without a readable picture is left out.

        Raises:
            InputError: the folder does not exist; it has no class folders, one of them holds only other formats, or
                they are data sets themselves or images and masks; no picture can be read; `limit` is below the number
                of classes; or ``index.csv`` is malformed or does not match the files.
        """
        root = Path(self.path).expanduser()
        listing = list_images(root, self.limit)
        patients = read_patients(root, listing.names)
        read = gathered(listing.chosen, self._read, self.channels)
        unread = listing.unread | read.unread
        skipped = tuple(f"{printable(path.relative_to(root))}: {why}" for path, why in unread.items())
        if not read.units:
            raise InputError(f"no image in '{root}' could be read: {first(skipped)}")
        classes = sorted({listing.labels[path] for path in read.units})
        lost = sorted({listing.labels[path] for path in listing.chosen} - set(classes))
        files = [path.relative_to(root) for path in read.units]
        return LabelledImages(
            images=read.images,
            labels=torch.tensor([classes.index(listing.labels[path]) for path in read.units]),
            classes=tuple(printable(Path(name)) for name in classes),
            names=tuple(map(printable, files)),
            patients=tuple(patients.of(printable(file)) for file in files),
            skipped=skipped,
            left_out=listing.left_out,
            notes=(*listing.notes, *patients.notes, *(_LOST.format(name=printable(Path(name))) for name in lost)),
        )

    def _read(self, files: Sequence[Path]) -> Generator[tuple[Path, Tensor | str], None, None]:
        """Yield each picture, or the reason why it could not be read."""

        def read(path: Path) -> Tensor | str:
            try:
                return fitted(decode(path), self.size, self.fit)
            except Exception as error:  # a broken file makes Pillow raise almost anything
                return reason(error, path)

        with pillow_quiet(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for some in batched(files):
                yield from zip(some, pool.map(read, some), strict=True)


_LOST = "No picture of class '{name}' could be read, so this class is left out."
