"""``index.csv`` beside the images, which gives each image's patient."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from medpfl.core.errors import InputError, listed
from medpfl.data.reading.table import Table, file_key, is_missing, read_table

__all__ = ["INDEX", "Patients", "read_patients"]

INDEX = "index.csv"
_EXPECTED = "a comma-separated UTF-8 file whose header has a column 'file' and, if known, 'patient_id'"
_PATIENT = ("patient_id", "patientid")
_LABELED_BY = ("series_uid", "study_uid", *_PATIENT)


class Patients(NamedTuple):
    """Patients listed in a table.

    Attributes:
        owners: patient id for each `file_key`; ``None`` if the cell is empty.
        notes: gaps in the table, as counts without names.
    """

    owners: dict[str, str | None]
    notes: tuple[str, ...] = ()

    def of(self, name: str) -> str | None:
        """Return a file's patient, or None if the table does not give it."""
        return self.owners.get(file_key(name))


def read_patients(
    root: Path, names: Collection[str], inside: Path | None = None, otherwise: str = "their patients are unknown"
) -> Patients:
    """Read the patient of each image listed in ``index.csv``.

    Args:
        root: the folder of ``index.csv``; the file may be missing.
        names: names of all image files found, relative to `inside`, with ``/``.
        inside: the folder that the table's files are relative to; ``None`` for `root`.
        otherwise: text for the notes on images without a row.

    Raises:
        InputError: the table exists but cannot be read, has no column ``file``, gives one file two patients, or gives
            patients but lists none of the files.
    """
    path = root / INDEX
    if not os.path.lexists(path):
        return Patients({})
    table = read_table(path, _EXPECTED)
    column = table.first(*_PATIENT)
    if "file" not in table.columns:
        if table.first("label", "class") and table.first(*_LABELED_BY):
            return Patients({})  # a table of labels only, by patient, study or series
        raise InputError(f"'{path}' has no column 'file': expected {_EXPECTED}")
    owners = _owners(table, column)
    if not any(owners.values()):
        return Patients(owners)
    return Patients(owners, _checked(path, set(owners), {file_key(name) for name in names}, inside or root, otherwise))


def _owners(table: Table, column: str | None) -> dict[str, str | None]:
    owners: dict[str, str | None] = {}
    for row in table.rows:
        own, cell = file_key(row["file"]), row[column] if column else ""
        owner = None if is_missing(cell) else cell
        if owners.setdefault(own, owner) != owner:
            raise InputError(
                f"'{table.path}' gives two patients, '{owners[own]}' and '{owner}', for '{row['file']}': keep one row"
            )
    return owners


def _checked(path: Path, own: set[str], found: set[str], inside: Path, otherwise: str) -> tuple[str, ...]:
    """Return notes about rows without a file and files without a row."""
    gone = sorted(name for name in own - found if not (inside / name).exists())
    if found and not own & found:
        example = min(found)
        raise InputError(
            f"'{path}' gives patients, but none of its {len(own)} rows matches an image:{listed(gone)}\n"
            f"give file paths relative to '{inside}', such as '{example}'"
        )
    notes = []
    if gone:
        notes.append(f"{len(gone)} of the {len(own)} files listed in {INDEX} are missing")
    if lacking := found - own:
        notes.append(f"{len(lacking)} of the {len(found)} image files have no row in {INDEX}: {otherwise}")
    return tuple(notes)
