"""Which class a DICOM or NIfTI file is of: by a CSV, or by the folder that it lies in."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medpfl.core.errors import InputError, listed

__all__ = ["UNLABELED", "Place", "label_files"]

UNLABELED = ("no label", "other")
"""The classes of images without labels: all are of the first, since a loss needs two."""

FOLDERS = "folders"
_KEYS = {"file": "file", "series_uid": "series", "study_uid": "study", "patient_id": "patient"}
_LABELS = ("label", "class")
_EXPECTED = (
    "a comma-separated file in UTF-8 whose first line names a column 'label' and one of 'file' (relative to the "
    "folder), 'series_uid', 'study_uid' and 'patient_id'"
)


@dataclass(frozen=True)
class Place:
    """A file that holds images, and what it may be known by.

    Attributes:
        file: relative to the source, with ``/``.
        patient, study, series: the source's own ids, where known.
    """

    file: str
    patient: str | None = None
    study: str | None = None
    series: str | None = None


def label_files(places: Sequence[Place], root: Path, labels: str | None) -> tuple[list[int], tuple[str, ...]]:
    """The class of each file.

    Args:
        places: the files.
        root: the folder of the source.
        labels: a CSV (columns ``label`` or ``class``, and ``file``, ``series_uid``, ``study_uid`` or
            ``patient_id``: the first of these that it has counts); ``"folders"``: the first folder below
            `root`; ``None``: ``index.csv`` in `root` if it has labels, else the folders if there are several
            and each holds two patients or more (one that holds one patient may be named for him), else none.

    Returns:
        Indices, and the sorted names of the classes.

    Raises:
        InputError: the CSV cannot be read, lacks some of the files, or names some that are not there; files
            lie outside of folders.
    """
    names = _named(places, root, labels)
    if names is None:
        return [0] * len(places), UNLABELED
    classes = tuple(sorted(set(names)))
    return [classes.index(name) for name in names], classes


def _named(places: Sequence[Place], root: Path, labels: str | None) -> list[str] | None:
    if labels == FOLDERS:
        return _folders(places, root)
    if labels is not None:
        return _from_table(places, Path(labels).expanduser(), root)
    index = root / "index.csv"
    if index.exists() and set(_LABELS) & set(_columns(index)):
        return _from_table(places, index, None)
    return _folders(places, root) if _look_like_classes(places) else None


def _folders(places: Sequence[Place], root: Path) -> list[str]:
    if loose := [place.file for place in places if "/" not in place.file]:
        raise InputError(
            f"{len(loose)} file(s) lie directly in '{root}', in no folder named for a class:{listed(loose)}\n"
            "move them, or give the labels of all files as labels='labels.csv'"
        )
    return [place.file.partition("/")[0] for place in places]


def _look_like_classes(places: Sequence[Place]) -> bool:
    patients: dict[str, set[str]] = {}
    for place in places:
        folder, inside, _ = place.file.partition("/")
        if not inside:
            return False
        patients.setdefault(folder, set()).add(place.patient or place.file)
    return len(patients) > 1 and all(len(own) > 1 for own in patients.values())


def _from_table(places: Sequence[Place], path: Path, root: Path | None) -> list[str]:
    """The label of each file; with `root`, the files that the table names must be there."""
    key, table = _read(path)
    keys = [getattr(place, _KEYS[key]) for place in places]
    if missing := [place.file for place, own in zip(places, keys, strict=True) if own not in table]:
        raise InputError(f"'{path}' has no label for {len(missing)} file(s):{listed(missing)}\nadd a row for each")
    if root and key == "file" and (gone := sorted(own for own in {*table} - {*keys} if not (root / own).exists())):
        raise InputError(
            f"'{path}' names {len(gone)} file(s) that are not there:{listed(gone)}\n"
            f"take out their rows, or put the files back; paths are relative to '{root}'"
        )
    return [table[own] for own in keys]


def _columns(path: Path) -> list[str]:
    return list(_rows(path)[0])


def _rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, restkey="", restval="")
            return list(rows.fieldnames or ()), list(rows)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read '{path}' ({error}): expected {_EXPECTED}") from error


def _read(path: Path) -> tuple[str, dict[str, str]]:
    """The column that files are known by, and the label of each of its values."""
    columns, rows = _rows(path)
    key = next((name for name in _KEYS if name in columns), None)
    label = next((name for name in _LABELS if name in columns), None)
    if key is None or label is None:
        raise InputError(f"'{path}' has the columns {', '.join(columns) or '(none)'}: expected {_EXPECTED}")
    table: dict[str, str] = {}
    for row in rows:
        own = row[key].strip()
        own = str(PurePosixPath(own)) if key == "file" else own
        name = row[label].strip()
        if name and table.setdefault(own, name) != name:
            raise InputError(f"'{path}' gives two labels, '{table[own]}' and '{name}', to one {key}: keep one")
    return key, table
