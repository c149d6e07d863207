"""DICOM images from a folder, a series or a DICOMDIR, grouped by patient."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from medpfl.core.errors import InputError, listed, nearest
from medpfl.data.images import LabelledImages
from medpfl.data.on_disk import batched, gathered
from medpfl.data.reading.dicom_headers import DicomFile, list_dicom, why_unread
from medpfl.data.reading.dicom_pixels import dicom_frames, quiet
from medpfl.data.reading.file_labels import Place, label_files
from medpfl.data.reading.index import Patients, read_patients
from medpfl.data.reading.listing import first, spread
from medpfl.data.reading.resize import fitted
from medpfl.data.target import LimitedTarget, Located

__all__ = ["Dicom"]

_Frame = tuple[DicomFile, int]
"""A file, and the position of a frame in it."""

Group = Literal["patient", "study", "series", "file"]


@dataclass(frozen=True, repr=False, eq=False)
class _Files(Located):  # the arguments before those of `LimitedTarget`
    labels: str | None = field(default=None, repr=False)
    group: Group = "patient"
    window: tuple[float, float] | None = None


@dataclass(frozen=True, repr=False)
class Dicom(LimitedTarget, _Files):
    """DICOM files, rendered as a viewer shows them: each frame is an image, and headers give the patients.

    Pixels are rescaled and then windowed by the file's VOI LUT or window (or by `window`), and MONOCHROME1 is inverted;
    16-bit images keep their precision. Dose and segmentation files and unreadable files are skipped and listed. No
    DICOM tag reaches any output except the key file and the header index beside it, which hold the ids.

    Attributes:
        path: a folder, searched recursively; a DICOMDIR; or one file.
        labels: Source of the labels if there is no ``index.csv``; see `medpfl.data.reading.file_labels.label_files`.
            Unlabeled images all belong to one class.
        group: the level that counts as one patient: ``"patient"`` (PatientID, unless ``patient_id`` in ``index.csv``
            overrides it), ``"study"``, ``"series"`` or ``"file"``.
        window: window center and width after rescaling, such as (40, 400) for abdominal CT.
        size, fit, channels: as in `medpfl.data.target.Target`; non-square pixels are made square.
        limit: maximum number of images, sampled evenly over classes and over files and frames in order.

    Raises:
        InputError: an argument is out of range.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group not in get_args(Group):
            raise InputError(f"there is no group {self.group!r}; {nearest(str(self.group), get_args(Group))}")
        if self.window is not None:
            _check_window(self.window)

    def load(self) -> LabelledImages:
        """Return the images, ordered by file and frame.

        Raises:
            InputError: the path does not exist or holds no readable DICOM image, a file does not identify its patient,
                or the labels do not match the files.
        """
        root, files, unread, notes = list_dicom(Path(self.path).expanduser())
        if not files:
            raise InputError(_NOTHING.format(root=self.path, why=first(_lines(unread)) or "it holds no DICOM file"))
        known = self._known(files, root)
        owners = dict(zip(files, self._owners(files, root, known), strict=True))
        labels, classes = label_files([file.place for file in files], root, self.labels)
        label_of = dict(zip(files, labels, strict=True))
        frames = [(file, frame) for file in files for frame in range(file.frames)]
        chosen = spread(frames, lambda unit: label_of[unit[0]], self.limit)
        read = gathered(chosen, self._read, self.channels)
        unread |= {file.place.file: why for (file, _), why in read.unread.items()}
        if not read.units:
            raise InputError(_NOTHING.format(root=self.path, why=first(_lines(unread))))
        return LabelledImages(
            images=read.images,
            labels=torch.tensor([label_of[file] for file, _ in read.units]),
            classes=classes,
            names=tuple(file.place.file + (f"#{frame}" if file.frames > 1 else "") for file, frame in read.units),
            patients=tuple(owners[file] for file, _ in read.units),
            skipped=tuple(_lines(unread)),
            left_out=len(frames) - len(chosen),
            notes=(*notes, *known.notes),
        )

    def _known(self, files: Sequence[DicomFile], root: Path) -> Patients:
        if self.group != "patient":
            return Patients({})
        names = [file.place.file for file in files]
        return read_patients(root, names, otherwise="their patients come from the DICOM headers")

    def _owners(self, files: Sequence[DicomFile], root: Path, known: Patients) -> list[str]:
        owners = [known.of(file.place.file) or _id(file.place, self.group) for file in files]
        if missing := [file.place.file for file, owner in zip(files, owners, strict=True) if owner is None]:
            known_by = (group for group in ("study", "series") if all(_id(file.place, group) for file in files))
            group = next(known_by, "file")
            raise InputError(
                f"{len(missing)} file(s) have no {_TAGS[self.group]}, so their patient is unknown:{listed(missing)}\n"
                f"add a column 'patient_id' to '{root / 'index.csv'}', or count each {group} as one patient: "
                f""""Dicom('{self.path}', group='{group}')" """
            )
        return [str(owner) for owner in owners]

    def _read(self, chosen: Sequence[_Frame]) -> Generator[tuple[_Frame, Tensor | str], None, None]:
        """Yield each image, or the reason why its file could not be read. Each file is opened once."""
        wanted: dict[DicomFile, list[int]] = {}
        for file, frame in chosen:
            wanted.setdefault(file, []).append(frame)

        def read(file: DicomFile) -> Sequence[Tensor | str]:
            try:
                shown = dicom_frames(file.path, wanted[file], self.window)
                return [fitted(image, self.size, self.fit, spacing) for image, spacing in shown]
            except Exception as error:  # a broken file makes pydicom raise almost anything
                return [why_unread(file.path, error)] * len(wanted[file])

        with quiet(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for some in batched(list(wanted)):
                for file, images in zip(some, pool.map(read, some), strict=True):
                    yield from (((file, frame), image) for frame, image in zip(wanted[file], images, strict=True))


_NOTHING = "no DICOM image in '{root}' could be read: {why}"
_TAGS = {"patient": "PatientID", "study": "StudyInstanceUID", "series": "SeriesInstanceUID"}


def _id(place: Place, group: str) -> str | None:
    return getattr(place, group)


def _lines(unread: dict[str, str]) -> list[str]:
    return [f"{name}: {why}" for name, why in sorted(unread.items())]


def _check_window(window: tuple[float, float]) -> None:
    pair = window if isinstance(window, tuple | list) else ()
    if len(pair) != 2 or not all(type(value) in (int, float) for value in pair) or not pair[1] > 0:
        raise InputError(f"window={window!r} must be a center and a width above 0, for example (40, 400)")
