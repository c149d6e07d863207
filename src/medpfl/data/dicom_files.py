"""Which files of a folder or a DICOMDIR are DICOM images, and what their headers say of patients and frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from medpfl.core.errors import InputError
from medpfl.data.decode import reason
from medpfl.data.labels import Place
from medpfl.data.listing import files_in, printable
from medpfl.data.viewer import quiet

__all__ = ["SUFFIXES", "DicomFile", "is_dicom", "list_dicom", "why_unread"]

SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
"""That DICOM files often have, in lower case; as often they have none."""

_DIRECTORY, _DOSE, _SEGMENTATION = (
    "1.2.840.10008.1.3.10",
    "1.2.840.10008.5.1.4.1.1.481.2",
    "1.2.840.10008.5.1.4.1.1.66.4",
)
_MOST_FRAMES = 100_000
_NO_PICTURE = {_DOSE: "a dose, not a picture", _SEGMENTATION: "a segmentation, not a picture"}
_WANTED = ["PatientID", "StudyInstanceUID", "SeriesInstanceUID", "NumberOfFrames", "SOPClassUID", "Rows", "Columns"]
_OURS = "pip install 'medpfl[dicom]'"
# By transfer syntax: the module that decodes it, and how to get that.
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
    """A file with pixels.

    Attributes:
        path: of the file.
        place: what it may be known by.
        frames: images in it.
    """

    path: Path
    place: Place
    frames: int


def list_dicom(given: Path) -> tuple[Path, list[DicomFile], dict[str, str]]:
    """The DICOM images of a folder, of a DICOMDIR, or of one file.

    Returns:
        The folder that names are relative to, the files in the order of their names, and why others could
        not be read.

    Raises:
        InputError: there is no such file or folder, or the DICOMDIR cannot be read.
    """
    if not given.exists():
        raise InputError(f"there is no file or folder '{given}'")
    unread: dict[Path, str] = {}
    root = given if given.is_dir() else given.parent
    candidates = sorted(_candidates(given, unread))
    files: list[DicomFile] = []
    for path in candidates:
        found = _read_header(path, root)
        if isinstance(found, DicomFile):
            files.append(found)
        elif found:
            unread[path] = found
    return root, files, {printable(path.relative_to(root)): why for path, why in unread.items()}


def is_dicom(path: Path) -> bool:
    """Whether a file has the mark of a DICOM file, whatever its name."""
    try:
        with path.open("rb") as file:
            return path.is_file() and file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _candidates(given: Path, unread: dict[Path, str]) -> Iterator[Path]:
    if given.is_dir():
        yield from (p for p in files_in(given, unread) if p.suffix.lower() in SUFFIXES or is_dicom(p))
        return
    listed = _directory(given)
    for path in [given] if listed is None else listed:
        if path.exists():
            yield path
        else:
            unread[path] = "named in the DICOMDIR, but not there"


def _directory(path: Path) -> list[Path] | None:
    """The files that a DICOMDIR names; ``None`` if the file is no DICOMDIR."""
    import pydicom

    named = path.name.upper() == "DICOMDIR"
    try:
        with quiet():
            header: Any = pydicom.dcmread(path)
            if header.file_meta.get("MediaStorageSOPClassUID") != _DIRECTORY and not named:
                return None
            names = [r.ReferencedFileID for r in header.DirectoryRecordSequence if "ReferencedFileID" in r]
    except Exception as error:  # a damaged file makes pydicom raise almost anything
        if not named:
            return None
        raise InputError(f"cannot read the DICOMDIR '{path}' ({reason(error)}): give its folder instead") from None
    parts = [[name] if isinstance(name, str) else list(name) for name in names]
    return sorted({_as_on_disk(path.parent, own) for own in parts if ".." not in own})


def _as_on_disk(root: Path, parts: list[str]) -> Path:
    """A DICOMDIR names files in upper case; copied to a disk they are often in lower case."""
    path, lower = root.joinpath(*parts), root.joinpath(*(part.lower() for part in parts))
    return lower if lower.exists() and not path.exists() else path


def _read_header(path: Path, root: Path) -> DicomFile | str | None:
    """The file, why it cannot be read, or ``None`` for a DICOMDIR."""
    import pydicom

    if not is_dicom(path):
        return "empty file" if path.is_file() and not path.stat().st_size else "has no DICOM header"
    try:
        with quiet():
            return _described(pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_WANTED), path, root)
    except Exception as error:  # a damaged file makes pydicom raise almost anything
        return f"damaged header ({reason(error)})"


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
    ids = [str(header.get(tag) or "").strip() or None for tag in _WANTED[:3]]
    return DicomFile(path, Place(printable(path.relative_to(root)), *ids), frames)


def why_unread(path: Path, error: Exception) -> str:
    """Why the pixels of a file could not be read, in a few words, with the missing plug-in if that is it."""
    import pydicom

    try:
        with quiet():
            header: Any = pydicom.dcmread(path, defer_size=1024)
            syntax = header.file_meta.TransferSyntaxUID
            if not any(tag in header for tag in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
                return "holds no pixels"
            if isinstance(error, NotImplementedError):
                return f"has the unknown transfer syntax {syntax.name}: save it as Explicit VR Little Endian"
            if isinstance(error, ValueError) and not syntax.is_compressed:
                return "has fewer or other pixels than its header says: it is cut off or damaged"
    except Exception as again:  # whatever made the first attempt fail
        return f"damaged ({reason(again)})"
    module, remedy = _PLUGINS.get(syntax, ("", ""))
    if module and find_spec(module) is None:
        return f"is compressed as {syntax.name}, which needs a plug-in: {remedy}"
    return f"cannot be decoded, {syntax.name} ({reason(error)})"
