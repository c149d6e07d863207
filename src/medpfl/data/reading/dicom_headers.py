"""Detection of DICOM images in a folder or DICOMDIR, with the patients and frame counts in their headers."""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from medpfl.core.atomic_files import oddity_of
from medpfl.core.errors import InputError
from medpfl.data.reading.decode import reason
from medpfl.data.reading.dicom_pixels import UnshownError, quiet, read_header, starts_bare
from medpfl.data.reading.file_labels import Place
from medpfl.data.reading.formats import of_other_formats
from medpfl.data.reading.listing import files_in, printable

__all__ = ["SUFFIXES", "DicomFile", "Found", "is_dicom", "kept_headers", "list_dicom", "recall_headers", "why_unread"]

SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
"""Common suffixes of DICOM files, in lower case. Many DICOM files have none."""

_DIRECTORY, _DOSE, _SEGMENTATION = (
    "1.2.840.10008.1.3.10",
    "1.2.840.10008.5.1.4.1.1.481.2",
    "1.2.840.10008.5.1.4.1.1.66.4",
)
_MOST_FRAMES = 100_000
_NO_PICTURE = {_DOSE: "a dose, not a picture", _SEGMENTATION: "a segmentation, not a picture"}
_WANTED = ["PatientID", "StudyInstanceUID", "SeriesInstanceUID", "NumberOfFrames", "SOPClassUID", "Rows", "Columns"]
_WANTED += ["SamplesPerPixel", "BitsAllocated", "PhotometricInterpretation"]
_MOST_PIXELS = 2**27
"""Maximum pixels per frame. The largest detectors and slide tiles have a fifth of this."""
_DAMAGED = "has fewer or other pixels than its header says: it is truncated or damaged"
_OURS = "pip install 'medpfl[dicom]'"
# By transfer syntax: the module that decodes it, and the command that installs it.
_PLUGINS = {
    "1.2.840.10008.1.2.4.51": ("libjpeg", "pip install pylibjpeg pylibjpeg-libjpeg"),
    "1.2.840.10008.1.2.4.57": ("libjpeg", "pip install pylibjpeg pylibjpeg-libjpeg"),
    "1.2.840.10008.1.2.4.70": ("libjpeg", "pip install pylibjpeg pylibjpeg-libjpeg"),
    "1.2.840.10008.1.2.4.80": ("jpeg_ls", _OURS),
    "1.2.840.10008.1.2.4.81": ("jpeg_ls", _OURS),
    "1.2.840.10008.1.2.4.90": ("openjpeg", _OURS),
    "1.2.840.10008.1.2.4.91": ("openjpeg", _OURS),
    "1.2.840.10008.1.2.4.201": ("openjpeg", _OURS),
    "1.2.840.10008.1.2.4.202": ("openjpeg", _OURS),
    "1.2.840.10008.1.2.4.203": ("openjpeg", _OURS),
}


@dataclass(frozen=True)
class DicomFile:
    """A DICOM file with pixels.

    Attributes:
        path: path of the file.
        place: file name and ids by which labels and patients are looked up.
        frames: number of images in the file.
    """

    path: Path
    place: Place
    frames: int


class Found(NamedTuple):
    """DICOM files found at a path.

    Attributes:
        root: the folder that names are relative to.
        files: files with pixels, sorted by path.
        unread: reason for each file that could not be read, by name.
        notes: counts of files in other formats.
    """

    root: Path
    files: list[DicomFile]
    unread: dict[str, str]
    notes: tuple[str, ...]


class _Known(NamedTuple):
    """A file's header, with the file's size in bytes and time of change in ns when it was read."""

    size: int
    changed: int
    frames: int
    patient: str | None
    study: str | None
    series: str | None


_known: dict[str, _Known] = {}
"""Headers by absolute path without links to folders, of this process and of earlier ones (`recall_headers`)."""

_SETTLED = 2.0
"""Seconds since a file's last change before its header is kept: a later change might not show in its time."""


def recall_headers(headers: dict[str, Any]) -> None:
    """Take headers that `kept_headers` returned in an earlier process. Files that changed since are read again.

    Raises:
        ValueError: one is no header; none is taken.
    """
    _known.update({path: _checked(values) for path, values in headers.items()} | _known)


def kept_headers(root: Path) -> dict[str, list[Any]]:
    """Return the headers of unchanged files in a folder, as values for JSON. They hold paths and patients' ids."""
    inside = str(root.resolve()) + os.sep
    within = {path: header for path, header in _known.items() if path.startswith(inside)}
    return {path: list(header) for path, header in within.items() if _recalled(Path(path))}


def _checked(values: Any) -> _Known:
    if not isinstance(values, list) or len(values) != len(_Known._fields):
        raise ValueError("a header in it has other fields")
    numbers, ids = values[:3], values[3:]
    if not all(type(number) is int for number in numbers) or not 0 < numbers[2] <= _MOST_FRAMES:
        raise ValueError("a number in it is out of range")
    if not all(one is None or (isinstance(one, str) and one == one.strip() != "") for one in ids):
        raise ValueError("an id in it is no text")
    return _Known(*values)


def _recalled(path: Path) -> _Known | None:
    """Return a file's known header; None if it has none, or the file has changed since."""
    known = _known.get(_called(path))
    if known is None:
        return None
    try:
        state = path.stat()
    except OSError:
        return None
    return known if (state.st_size, state.st_mtime_ns) == known[:2] and stat.S_ISREG(state.st_mode) else None


def _keep(path: Path, state: os.stat_result, file: DicomFile) -> None:
    """Keep a header, read after the file had the state `state`."""
    if time.time() - state.st_mtime > _SETTLED:
        place = file.place
        known = _Known(state.st_size, state.st_mtime_ns, file.frames, place.patient, place.study, place.series)
        _known[_called(path)] = known


def _called(path: Path) -> str:
    return os.path.join(_real(path.parent), path.name)  # noqa: PTH118 (called for each of many files)


@lru_cache(maxsize=1024)
def _real(folder: Path) -> str:
    return str(folder.resolve())


def list_dicom(given: Path) -> Found:
    """Return the DICOM images in a folder, a DICOMDIR, or one file.

    Raises:
        InputError: the file or folder does not exist, or the DICOMDIR cannot be read.
    """
    if not given.exists():
        raise InputError(f"there is no file or folder '{given}'")
    unread: dict[Path, str] = {}
    root = given if given.is_dir() else given.parent
    candidates, others = _candidates(given, unread)
    files: list[DicomFile] = []
    for path in sorted(candidates):
        found = _read_header(path, root)
        if isinstance(found, DicomFile):
            files.append(found)
        elif found:
            unread[path] = found
    notes = of_other_formats(others, lambda _: False, "DICOM")
    return Found(root, files, {printable(path.relative_to(root)): why for path, why in unread.items()}, notes)


def is_dicom(path: Path) -> bool:
    """Return True if a file is DICOM, whatever its name: by its ``DICM`` mark, or by a header without one."""
    try:
        if _recalled(path):
            return True
        if oddity_of(path):
            return False
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return False
    return start[128:] == b"DICM" or (starts_bare(start) and not isinstance(_bare_header(path), str))


def _bare_header(path: Path) -> Any:
    """Return the header of a data set without preamble and ``DICM`` mark, or the reason why it is none."""
    try:
        with quiet():
            header = read_header(path, stop_before_pixels=True, specific_tags=_WANTED)
    except Exception as error:  # whatever the file is instead
        return reason(error, path)
    return header if header.get("Rows") and header.get("Columns") else "has no DICOM header"


def _candidates(given: Path, unread: dict[Path, str]) -> tuple[list[Path], list[Path]]:
    """Return the files that may be DICOM, and the folder's other files."""
    if given.is_dir():
        files = files_in(given, unread)
        likely = [path for path in files if path.suffix.lower() in SUFFIXES or is_dicom(path)]
        return likely, sorted({*files} - {*likely})
    named = _directory(given)
    candidates = [given] if named is None else named
    unread |= {path: "listed in the DICOMDIR, but missing" for path in candidates if not path.exists()}
    return [path for path in candidates if path.exists()], []


def _directory(path: Path) -> list[Path] | None:
    """Return the files listed in a DICOMDIR; None if the file is not a DICOMDIR."""
    import pydicom

    named = path.name.upper() == "DICOMDIR"
    if not path.is_file():
        return None
    try:
        with quiet():
            header: Any = pydicom.dcmread(path)
            if header.file_meta.get("MediaStorageSOPClassUID") != _DIRECTORY and not named:
                return None
            names = [r.ReferencedFileID for r in header.DirectoryRecordSequence if "ReferencedFileID" in r]
    except Exception as error:  # a damaged file makes pydicom raise almost anything
        if not named:
            return None
        raise InputError(
            f"cannot read the DICOMDIR '{path}' ({reason(error, path)}): give its folder instead"
        ) from None
    parts = [[name] if isinstance(name, str) else list(name) for name in names]
    return sorted({_as_on_disk(path.parent, own) for own in parts if ".." not in own})


def _as_on_disk(root: Path, parts: list[str]) -> Path:
    """Return the path of a file listed in a DICOMDIR, whose upper-case names are often lower case on disk."""
    path, lower = root.joinpath(*parts), root.joinpath(*(part.lower() for part in parts))
    return lower if lower.exists() and not path.exists() else path


def _read_header(path: Path, root: Path) -> DicomFile | str | None:
    """Return the file, the reason why it cannot be read, or None for a DICOMDIR."""
    if why := oddity_of(path):
        return why
    if known := _recalled(path):
        place = Place(printable(path.relative_to(root)), known.patient, known.study, known.series)
        return DicomFile(path, place, known.frames)
    if not is_dicom(path):
        if not path.stat().st_size:
            return "empty file"
        return "has no DICOM header" if os.access(path, os.R_OK) else "Permission denied"
    try:
        before = path.stat()
        with quiet():
            found = _described(read_header(path, stop_before_pixels=True, specific_tags=_WANTED), path, root)
        if isinstance(found, DicomFile):
            _keep(path, before, found)
        return found
    except Exception as error:  # a damaged file makes pydicom raise almost anything
        return f"damaged header ({reason(error, path)})"


def _described(header: Any, path: Path, root: Path) -> DicomFile | str | None:
    kind = header.file_meta.get("MediaStorageSOPClassUID") or header.get("SOPClassUID")
    if kind == _DIRECTORY:
        return None
    if kind in _NO_PICTURE:
        return _NO_PICTURE[kind]
    if not header.get("Rows") or not header.get("Columns"):
        return "holds no pixels"
    frames = max(int(header.get("NumberOfFrames") or 1), 1)
    if frames > _MOST_FRAMES:
        return f"damaged header (it says {frames} frames)"
    if header.Rows * header.Columns > _MOST_PIXELS:
        return f"damaged header (it says {header.Rows} x {header.Columns} pixels)"
    ids = [str(header.get(tag) or "").strip() or None for tag in _WANTED[:3]]
    return DicomFile(path, Place(printable(path.relative_to(root)), *ids), frames)


def why_unread(path: Path, error: Exception) -> str:
    """Return a short reason why a file's pixels could not be read; it names a missing decoder plug-in."""
    if isinstance(error, UnshownError):
        return str(error)
    try:
        with quiet():
            return _why(read_header(path), reason(error, path), isinstance(error, NotImplementedError))
    except Exception as again:  # whatever made the first attempt fail
        return f"damaged ({reason(again, path)})"


def _why(header: Any, said: str, unknown: bool) -> str:
    """Return why pixels could not be read, from the header, the decoder's message, and if the syntax is unknown."""
    from pydicom.pixels.utils import get_expected_length

    syntax = header.file_meta.TransferSyntaxUID
    pixels = next((header[tag].value for tag in _PIXELS if tag in header), None)
    if pixels is None:
        return "holds no pixels"
    if unknown:
        return f"has the unsupported transfer syntax {syntax.name}: save it as Explicit VR Little Endian"
    if not syntax.is_compressed:
        return _DAMAGED if len(pixels) < get_expected_length(header) else f"cannot be shown ({said})"
    module, remedy = _PLUGINS.get(syntax, ("", ""))
    if module and find_spec(module) is None:
        return f"is compressed as {syntax.name}, which needs a plug-in: run {remedy}"
    return f"cannot be decoded as {syntax.name} ({said})"


_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
