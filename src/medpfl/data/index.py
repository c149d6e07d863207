"""``index.csv`` beside the class folders: which patient an image is of."""

from __future__ import annotations

import csv
from pathlib import Path, PurePosixPath

from medpfl.core.errors import InputError

__all__ = ["read_patients"]

_EXPECTED = "a comma-separated file in UTF-8 whose first line names a column 'file' and, if known, 'patient_id'"


def read_patients(path: Path) -> dict[str, str | None]:
    """The patient of each image that the file names, ``None`` where the cell is empty.

    Args:
        path: of the file; there need be none.

    Returns:
        Patient ids by the image's path relative to the folder of `path`, with ``/``.

    Raises:
        InputError: the file is there and cannot be read, or has no column ``file``.
    """
    if not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, restkey="", restval="")
            if "file" not in (rows.fieldnames or ()):
                raise InputError(f"'{path}' has no column 'file': expected {_EXPECTED}")
            return {str(PurePosixPath(row["file"].strip())): row.get("patient_id", "").strip() or None for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read '{path}' ({error}): expected {_EXPECTED}") from error
