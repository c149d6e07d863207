"""Selection of the data source that fits the files at a path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from medpfl.core.errors import InputError
from medpfl.core.roles import DataSource
from medpfl.data import nifti
from medpfl.data.dicom import Dicom
from medpfl.data.folder import ImageFolder
from medpfl.data.medmnist import MedMNIST
from medpfl.data.nifti import Nifti
from medpfl.data.reading import dicom_headers
from medpfl.data.reading.formats import is_text
from medpfl.data.reading.listing import files_in, is_image
from medpfl.data.samples import Samples
from medpfl.data.segmented import Segmented, is_segmented

__all__ = ["embedded", "source_at"]

_PROBED = 100
"""Maximum number of files per folder that are opened to detect DICOM when the name does not tell."""
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")


def embedded(**arguments: Any) -> DataSource:
    """Return the source of the sample images that come with MedPFL's dependencies.

    Args:
        arguments: the source's arguments: size, fit, channels.
    """
    return Samples(**arguments)


def source_at(path: str, **arguments: Any) -> DataSource:
    """Return the data source that reads the files at a path.

    It recognizes a DICOM folder, file or DICOMDIR, NIfTI files, a MedMNIST ``.npz`` file, images with masks, and class
    folders.

    Args:
        path: a file or folder.
        arguments: the source's arguments: size, fit, channels.

    Returns:
        The source. A folder without any such files, or a missing one, gives `ImageFolder`, whose error states what it
        needs.

    Raises:
        InputError: no source can read the file, the path is a named pipe or a device, or the folder holds files for
            several sources.
    """
    place = Path(path).expanduser()
    if place.exists() and not place.is_file() and not place.is_dir():
        raise InputError(f"'{path}' is a named pipe or a device: give a folder or a regular file")
    if is_segmented(place):
        return Segmented(path, **arguments)
    if place.is_file():
        return _of_file(place)(path, **arguments)
    found = Counter(_kinds(files_in(place, {})))
    if len(found) > 1:
        counts = ", ".join(f"{count} for {kind.__name__}" for kind, count in found.items())
        choice = " or ".join(f"\"{kind.__name__}('{path}')\"" for kind in found)
        raise InputError(f"'{path}' holds files of more than one kind ({counts}). Choose one: {choice}")
    return next(iter(found), ImageFolder)(path, **arguments)


def _kinds(files: Iterable[Path]) -> Iterator[Any]:
    """Yield the source for each readable file, recognized by its name or by a DICOM signature inside it.

    In a DICOM file's name, the text after the last dot may be the end of a UID instead of a suffix.
    """
    probed: Counter[Path] = Counter()
    dicom_folders: set[Path] = set()
    for file in files:
        kind = _by_name(file)
        if kind is None and not is_text(file) and (file.parent in dicom_folders or probed[file.parent] < _PROBED):
            probed[file.parent] += 1
            if dicom_headers.is_dicom(file):
                kind = Dicom
                dicom_folders.add(file.parent)
        if kind is not None:
            yield kind


def _by_name(file: Path) -> Any:
    name = file.name.lower()
    if is_image(name):
        return ImageFolder
    if name.endswith(nifti.SUFFIXES):
        return Nifti
    return Dicom if file.suffix.lower() in dicom_headers.SUFFIXES or name == "dicomdir" else None


def _of_file(file: Path) -> Any:
    if file.suffix.lower() == ".npz":
        return MedMNIST
    if (kind := _by_name(file)) in (Dicom, Nifti):
        return kind
    if dicom_headers.is_dicom(file):
        return Dicom
    if file.name.lower().endswith(_ARCHIVES):
        raise InputError(f"'{file}' is an archive: unpack it and give the folder")
    raise InputError(
        f"cannot read the file '{file}': it is not a recorded update, a DICOM or NIfTI file, or a MedMNIST .npz. Give "
        "one of these, or a folder that holds class folders"
    )
