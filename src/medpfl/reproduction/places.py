"""The folders of a study's image sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medpfl.core.errors import InputError, nearest
from medpfl.reproduction.experiments import SAMPLES, SETS

__all__ = ["ACCURACY_SET", "Places"]

ACCURACY_SET = "pneumonia_mnist"
"""Name of the set on which defended trainings are scored, if it is there."""


@dataclass(frozen=True)
class Places:
    """The places of a study's images.

    Attributes:
        found: folders of sets, by name.
        missing: names of missing sets.
        accuracy: expected place of `ACCURACY_SET`: a folder with one ``.npz``, or the file itself.
    """

    found: dict[str, Path]
    missing: tuple[str, ...]
    accuracy: Path

    @classmethod
    def among(cls, data: Path, sets: Mapping[str, str | Path]) -> Places:
        """Find the sets in a folder that holds one folder per set, or where `sets` places them.

        Args:
            data: the folder, or ``samples`` for the embedded images.
            sets: other places, by set name.

        Raises:
            InputError: if no set is found, a name is unknown, or a named folder does not exist.
        """
        if unknown := sorted(set(sets) - {*SETS, ACCURACY_SET}):
            raise InputError(
                f"there is no set '{unknown[0]}' in the study; {nearest(unknown[0], (*SETS, ACCURACY_SET))}"
            )
        accuracy = Path(sets.get(ACCURACY_SET, data / ACCURACY_SET)).expanduser()
        if str(data) == SAMPLES and not sets:
            return cls({SAMPLES: data}, (), accuracy)
        places = {name: Path(sets.get(name, data / name)).expanduser() for name in SETS}
        if missing := [name for name in places if name in sets and not places[name].is_dir()]:
            raise InputError(f"'{places[missing[0]]}', given for {missing[0]}, is not a folder")
        found = {name: place for name, place in places.items() if place.is_dir()}
        if not found:
            raise InputError(f"'{data}' holds none of the folders {', '.join(SETS)}: name other folders with --sets")
        return cls(found, tuple(name for name in places if name not in found), accuracy)

    def accuracy_file(self) -> Path | None:
        """Return the file with the images of `ACCURACY_SET`, or ``None`` if it is missing.

        Raises:
            InputError: if there are several files.
        """
        if self.accuracy.is_file():
            return self.accuracy
        files = sorted(self.accuracy.glob("*.npz")) if self.accuracy.is_dir() else []
        if len(files) > 1:
            raise InputError(f"'{self.accuracy}' holds several .npz files: name the one for {ACCURACY_SET} in --sets")
        return files[0] if files else None
