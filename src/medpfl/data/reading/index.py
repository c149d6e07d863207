"""``index.csv`` beside the images: which patient an image is of."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from medpfl.core.errors import InputError, listed
from medpfl.data.reading.table import Table, file_key, is_missing, read_table

__all__ = ["INDEX", "Patients", "read_patients"]

INDEX = "index.csv"
_EXPECTED = "a comma-separated file in UTF-8 whose first line names a column 'file' and, if known, 'patient_id'"
_PATIENT = ("patient_id", "patientid")
_LABELED_BY = ("series_uid", "study_uid", *_PATIENT)


class Patients(NamedTuple):
    """The patients that a table names.

    Attributes:
        owners: patient ids by `file_key`; ``None`` where the cell is empty.
        notes: what the table lacks; with counts, and without any name.
    """

    owners: dict[str, str | None]
    notes: tuple[str, ...] = ()

    def of(self, name: str) -> str | None:
        """Return the patient of a file; ``None`` where the table does not say."""
        return self.owners.get(file_key(name))


def read_patients(
    root: Path, names: Collection[str], inside: Path | None = None, otherwise: str = "their patients are unknown"
) -> Patients:
    """Read the patient of each image that ``index.csv`` names.

    Args:
        root: the folder of ``index.csv``; there need be none.
        names: of all image files that were found, relative to `inside`, with ``/``.
        inside: the folder that the table's files are relative to; ``None``: `root`.
        otherwise: what is known of images without a row, for the notes.

    Raises:
        InputError: the table is there and cannot be read, has no column ``file``, gives two patients to one file, or
            gives patients and names none of the files.
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
                f"'{table.path}' gives two patients, '{owners[own]}' and '{owner}', to '{row['file']}': keep one row"
            )
    return owners


def _checked(path: Path, own: set[str], found: set[str], inside: Path, otherwise: str) -> tuple[str, ...]:
    """Return notes of rows without a file and of files without a row."""
    gone = sorted(name for name in own - found if not (inside / name).exists())
    if found and not own & found:
        example = min(found)
        raise InputError(
            f"'{path}' gives patients, but none of its {len(own)} rows names an image that is there:{listed(gone)}\n"
            f"write the files relative to '{inside}', such as '{example}'"
        )
    notes = []
    if gone:
        notes.append(f"{len(gone)} of the {len(own)} files that {INDEX} names are not there")
    if lacking := found - own:
        notes.append(f"{len(lacking)} of the {len(found)} image files have no row in {INDEX}: {otherwise}")
    return tuple(notes)
