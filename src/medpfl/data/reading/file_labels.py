"""Class labels of files, from a CSV or from folder names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medpfl.core.errors import InputError, listed
from medpfl.core.experiments.groups import UNLABELED
from medpfl.data.reading.index import INDEX
from medpfl.data.reading.nested import are_parts, check_parts
from medpfl.data.reading.table import Table, file_key, is_missing, read_table

__all__ = ["UNLABELED", "Place", "label_files", "labels_given"]

FOLDERS = "folders"
_KEYS = {
    "file": "file", "series_uid": "series", "study_uid": "study", "patient_id": "patient", "patientid": "patient"
}  # fmt: skip
_LABELS = ("label", "class")
_EXPECTED = (
    "a comma-separated UTF-8 file whose header has a column 'label' and one of 'file' (relative to the "
    "folder), 'series_uid', 'study_uid' and 'patient_id'"
)


@dataclass(frozen=True)
class Place:
    """A file that holds images, with the names and ids by which a table can refer to it.

    Attributes:
        file: path relative to the source, with ``/``.
        patient, study, series: the source's own ids, where known.
    """

    file: str
    patient: str | None = None
    study: str | None = None
    series: str | None = None


def label_files(places: Sequence[Place], root: Path, labels: str | None) -> tuple[list[int], tuple[str, ...]]:
    """Return the class of each file.

    Args:
        places: the files.
        root: the source's folder.
        labels: A CSV with a column ``label`` or ``class``, and one or more of ``file``, ``series_uid``, ``study_uid``
            and ``patient_id``, of which the first one present is used. ``"folders"``: the first folder below `root`.
            ``None``: ``index.csv`` in `root` if it has labels; else the folders if there are several and each holds at
            least two patients (a folder with one patient may be named after that patient); else no labels.

    Returns:
        Class indices, and the sorted class names.

    Raises:
        InputError: the CSV cannot be read, lacks some of the files, or lists missing files; files lie outside the
            class folders; or the folders are splits (such as train and test), each with folders of its own.
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
        return _from_table(places, read_table(Path(labels).expanduser(), _EXPECTED), root)
    if table := labels_given(root):
        return _from_table(places, table, None)
    return _folders(places, root) if _look_like_classes(places, root) else None


def labels_given(root: Path) -> Table | None:
    """Return the table ``index.csv`` in a folder, if it gives labels; else None.

    Raises:
        InputError: the table exists and cannot be read.
    """
    path = root / INDEX
    if not os.path.lexists(path):
        return None
    table = read_table(path, _EXPECTED)
    column = table.first(*_LABELS)
    return table if column and not all(is_missing(row[column]) for row in table.rows) else None


def _folders(places: Sequence[Place], root: Path) -> list[str]:
    if loose := [place.file for place in places if "/" not in place.file]:
        raise InputError(
            f"{len(loose)} file(s) lie directly in '{root}', not in a class folder:{listed(loose)}\n"
            "move them into class folders, or give the labels of all files with labels='labels.csv'"
        )
    return [place.file.partition("/")[0] for place in places]


def _look_like_classes(places: Sequence[Place], root: Path) -> bool:
    patients: dict[str, set[str]] = {}
    for place in places:
        folder, inside, _ = place.file.partition("/")
        if not inside:
            return False
        patients.setdefault(folder, set()).add(place.patient or place.file)
    if are_parts(patients):
        check_parts(root, [place.file for place in places])
        return False
    return len(patients) > 1 and all(len(own) > 1 for own in patients.values())


def _from_table(places: Sequence[Place], table: Table, root: Path | None) -> list[str]:
    """Return each file's label. If `root` is given, all files listed in the table must exist."""
    path = table.path
    key, named = _named_by(table)
    keys = [_key(place, key) for place in places]
    if not any(keys) and places:
        raise InputError(f"'{path}' gives labels by '{key}', which these files do not have: add a column 'file'")
    if missing := [place.file for place, own in zip(places, keys, strict=True) if own not in named]:
        raise InputError(f"'{path}' has no label for {len(missing)} file(s):{listed(missing)}\nadd a row for each")
    if root and key == "file" and (gone := sorted(own for own in {*named} - {*keys} if not (root / own).exists())):
        raise InputError(
            f"'{path}' lists {len(gone)} missing file(s):{listed(gone)}\n"
            f"remove their rows or restore the files; paths are relative to '{root}'"
        )
    return [named[own or ""] for own in keys]


def _key(place: Place, key: str) -> str | None:
    own = getattr(place, _KEYS[key])
    return file_key(own) if key == "file" else own


def _named_by(table: Table) -> tuple[str, dict[str, str]]:
    """Return the column that identifies files, and the label for each of its values."""
    key, label = table.first(*_KEYS), table.first(*_LABELS)
    if key is None or label is None:
        found = ", ".join(table.columns) or "(none)"
        raise InputError(f"'{table.path}' has the columns {found}: expected {_EXPECTED}")
    named: dict[str, str] = {}
    for row in table.rows:
        own, name = file_key(row[key]) if key == "file" else row[key], row[label]
        if not is_missing(name) and named.setdefault(own, name) != name:
            raise InputError(f"'{table.path}' gives two labels, '{named[own]}' and '{name}', to one {key}: keep one")
    return key, named
