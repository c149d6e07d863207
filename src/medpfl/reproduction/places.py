"""Where the sets of images of a study are, and which are not there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medpfl.core.errors import InputError, nearest
from medpfl.reproduction.experiments import SAMPLES, SETS

__all__ = ["ACCURACY_SET", "Places"]

ACCURACY_SET = "pneumonia_mnist"
"""The set that defended trainings are judged on, where it is there."""


@dataclass(frozen=True)
class Places:
    """Of the images.

    Attributes:
        found: folders of sets by name.
        missing: names of sets that are not there.
        accuracy: where `ACCURACY_SET` should be: a folder that holds one ``.npz``, or the file itself.
    """

    found: dict[str, Path]
    missing: tuple[str, ...]
    accuracy: Path

    @classmethod
    def among(cls, data: Path, sets: Mapping[str, str | Path]) -> Places:
        """In a folder of folders called as the sets are, but for those that are said to be elsewhere.

        Args:
            data: the folder, or ``samples``.
            sets: places by name.

        Raises:
            InputError: no set at all, a name of none, or a folder that was named and is not there.
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
            raise InputError(f"'{places[missing[0]]}', which stands for {missing[0]}, is no folder")
        found = {name: place for name, place in places.items() if place.is_dir()}
        if not found:
            raise InputError(f"'{data}' holds none of the folders {', '.join(SETS)}: other names are given by --sets")
        return cls(found, tuple(name for name in places if name not in found), accuracy)

    def accuracy_file(self) -> Path | None:
        """The images of `ACCURACY_SET`; ``None``: they are not there.

        Raises:
            InputError: there are several files.
        """
        if self.accuracy.is_file():
            return self.accuracy
        files = sorted(self.accuracy.glob("*.npz")) if self.accuracy.is_dir() else []
        if len(files) > 1:
            raise InputError(f"'{self.accuracy}' holds several .npz files: give the one of {ACCURACY_SET} in --sets")
        return files[0] if files else None
