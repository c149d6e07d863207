"""Three public Kaggle data sets of the kinds that Das, Amini and Wu attack: brain MRI, chest X-ray, skin."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from medpfl.core.errors import InputError, nearest
from medpfl.core.roles import DataSource
from medpfl.data.folder import ImageFolder
from medpfl.data.images import LabelledImages
from medpfl.data.reading.decode import reason
from medpfl.data.target import LimitedTarget

__all__ = ["Kaggle"]

Split = Literal["train", "test"]


class _Set(NamedTuple):
    handle: str
    train: str
    test: str


_SETS: Mapping[str, _Set] = {
    "brain_mri": _Set("masoudnickparvar/brain-tumor-mri-dataset", "Training", "Testing"),
    "covid_xray": _Set("pranavraikokte/covid19-image-dataset", "Covid19-dataset/train", "Covid19-dataset/test"),
    "melanoma": _Set(
        "hasnainjaved/melanoma-skin-cancer-dataset-of-10000-images",
        "melanoma_cancer_dataset/train",
        "melanoma_cancer_dataset/test",
    ),
}


@dataclass(frozen=True, repr=False, eq=False)
class _Named(DataSource):  # the arguments before those of `LimitedTarget`
    name: str
    path: str | os.PathLike[str] | None = field(default=None, repr=False)
    split: Split = "train"


@dataclass(frozen=True, repr=False)
class Kaggle(LimitedTarget, _Named):
    """A public Kaggle data set: ``"brain_mri"``, ``"covid_xray"`` or ``"melanoma"``.

    ``brain_mri``: masoudnickparvar/brain-tumor-mri-dataset (four classes); ``covid_xray``:
    pranavraikokte/covid19-image-dataset (three); ``melanoma``: hasnainjaved/melanoma-skin-cancer-dataset-of-
    10000-images (two). Their files do not identify patients.

    Attributes:
        name: name of the data set.
        path: folder of the unpacked data set; ``None`` downloads it, which needs kagglehub.
        split: ``"train"`` or ``"test"``.
        size, fit, channels, limit: as in `medpfl.data.target.LimitedTarget`.

    Raises:
        InputError: an argument is out of range.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path is not None:
            object.__setattr__(self, "path", os.fspath(self.path))
        if self.name not in _SETS:
            raise InputError(f"there is no set '{self.name}'; {nearest(str(self.name), _SETS)}")
        if self.split not in get_args(Split):
            raise InputError(f"there is no split {self.split!r}; {nearest(str(self.split), get_args(Split))}")

    def load(self) -> LabelledImages:
        """Return the split's pictures, as read by `ImageFolder`.

        Raises:
            InputError: the folder is not laid out as published, kagglehub is missing or fails, or `ImageFolder` raises.
        """
        chosen = _SETS[self.name]
        root = Path(self.path).expanduser() if self.path is not None else _fetched(chosen.handle)
        inside = chosen.train if self.split == "train" else chosen.test
        # Some unpack the archive's only folder, and give that.
        folder = next((f for f in (root / inside, root / Path(inside).name) if f.is_dir()), None)
        if folder is None:
            raise InputError(f"'{root}' is not laid out as kaggle.com/datasets/{chosen.handle}: it has no '{inside}'")
        return ImageFolder(folder, self.size, self.fit, self.channels, self.limit).load()


def _fetched(handle: str) -> Path:
    try:
        import kagglehub  # type: ignore[import-not-found]  (an extra)
    except ImportError:
        raise InputError(
            f"kagglehub is not installed: pip install kagglehub, or download kaggle.com/datasets/{handle} yourself "
            "and give its folder as path='...'"
        ) from None
    hub: Any = kagglehub
    try:
        return Path(hub.dataset_download(handle))
    except Exception as error:  # whatever the network, the server and the account give rise to
        raise InputError(f"kagglehub could not download {handle}: {reason(error)}") from error
