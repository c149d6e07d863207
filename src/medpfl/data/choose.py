"""Which source reads what lies at a path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medpfl.core.errors import InputError
from medpfl.core.roles import DataSource
from medpfl.data import dicom_files, nifti
from medpfl.data.dicom import Dicom
from medpfl.data.folder import ImageFolder
from medpfl.data.listing import files_in, is_image
from medpfl.data.medmnist import MedMNIST
from medpfl.data.nifti import Nifti
from medpfl.data.segmented import Segmented, is_segmented

__all__ = ["source_at"]

_PROBED = 200
"""Files without a telling name that are opened to see whether they are DICOM."""


def source_at(path: str, **arguments: Any) -> DataSource:
    """A DICOM folder, file or DICOMDIR, NIfTI, an ``.npz`` of MedMNIST, images with masks, or class folders.

    Args:
        path: of a file or a folder.
        arguments: of the source: size, fit, channels.

    Returns:
        The source; `ImageFolder`, which says what it needs, for a folder without such files or none at all.

    Raises:
        InputError: a file that no source reads, or a folder with files for more than one.
    """
    place = Path(path).expanduser()
    if is_segmented(place):
        return Segmented(path, **arguments)
    if place.is_file():
        return _of_file(place)(path, **arguments)
    found: dict[type, int] = {}
    probed = 0
    for file in files_in(place, {}):
        telling = _by_name(file)
        if telling is None and not file.suffix and probed < _PROBED:
            probed += 1
            telling = Dicom if dicom_files.is_dicom(file) else None
        if telling is not None:
            found[telling] = found.get(telling, 0) + 1
    if len(found) > 1:
        counts = ", ".join(f"{count} for {kind.__name__}" for kind, count in found.items())
        choice = " or ".join(f"\"{kind.__name__}('{path}')\"" for kind in found)
        raise InputError(f"'{path}' holds files of more than one kind ({counts}): say which to read, {choice}")
    return next(iter(found), ImageFolder)(path, **arguments)


def _by_name(file: Path) -> Any:
    name = file.name.lower()
    if is_image(name):
        return ImageFolder
    if name.endswith(nifti.SUFFIXES):
        return Nifti
    return Dicom if file.suffix.lower() in dicom_files.SUFFIXES or name == "dicomdir" else None


def _of_file(file: Path) -> Any:
    if file.suffix.lower() == ".npz":
        return MedMNIST
    if (kind := _by_name(file)) in (Dicom, Nifti):
        return kind
    if dicom_files.is_dicom(file):
        return Dicom
    raise InputError(
        f"'{file}' is a file, but no record of an update, no DICOM or NIfTI file and no .npz of MedMNIST: give one of "
        "these, or a folder of class folders"
    )
