"""Real medical images that come installed with pydicom and nibabel, for a first run without data of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.data.images import LabelledImages
from medpfl.data.reading.dicom_pixels import dicom_frame
from medpfl.data.reading.resize import fitted, stacked
from medpfl.data.reading.sample_cuts import CROPS, SLICES
from medpfl.data.reading.volumes import Volume, slice_of, volume
from medpfl.data.target import Target

__all__ = ["Samples"]


@dataclass(frozen=True, repr=False)
class Samples(Target):
    """CT, MR (structural and functional) and ultrasound from the test files of pydicom and nibabel.

    The images are slices and crops from nine files; each file counts as one patient. Nothing is downloaded.

    Attributes:
        size, fit, channels: as in `medpfl.data.target.Target`, except that images are gray unless `channels` is 3.

    Raises:
        InputError: an argument is out of range.
    """

    def load(self) -> LabelledImages:
        """Return the samples as a viewer shows them, sorted by class and file.

        Raises:
            InputError: the test files are not installed, or cannot be decoded.
        """
        samples = sorted([*_crops(), *_slices()], key=lambda sample: (sample.label, sample.file))
        classes = sorted({sample.label for sample in samples})
        return LabelledImages(
            images=stacked([fitted(s.image, self.size, self.fit) for s in samples], self.channels or 1),
            labels=torch.tensor([classes.index(s.label) for s in samples]),
            classes=tuple(classes),
            names=tuple(f"{s.file}#{s.part}" for s in samples),
            patients=tuple(s.file for s in samples),
        )


@dataclass(frozen=True, eq=False)
class _Sample:
    label: str
    file: str
    part: str
    image: Tensor


def _crops() -> Iterator[_Sample]:
    from pydicom.data import get_testdata_file

    for (label, file), crops in CROPS.items():
        path = get_testdata_file(file, download=False)
        if not isinstance(path, str):
            raise InputError(_MISSING.format(file=f"pydicom/{file}"))
        frames = {frame: _read(dicom_frame, path, frame) for frame in {crop.frame for crop in crops}}
        for i, crop in enumerate(crops):
            rows, columns = (slice(start, start + crop.side) for start in (crop.top, crop.left))
            yield _Sample(label, f"pydicom/{file}", f"crop{i}", frames[crop.frame][:, rows, columns])


def _slices() -> Iterator[_Sample]:
    import nibabel

    for (label, file), slices in SLICES.items():
        path = Path(nibabel.__file__).parent / "tests" / "data" / file
        if not path.exists():
            raise InputError(_MISSING.format(file=f"nibabel/{file}"))
        voxels = _read(volume, path)
        for plane, position in slices:
            image, _ = slice_of(Volume(voxels, (1, 1, 1)), plane, position)
            yield _Sample(label, f"nibabel/{file}", f"{plane}{position}", image)


@lru_cache(maxsize=32)  # decoding takes longer than a small audit's attack
def _read(reader: Callable[..., Tensor], path: str | Path, *which: int) -> Tensor:
    try:
        return reader(path, *which)
    except Exception as error:  # a decoder that is not built in, or a damaged installation
        raise InputError(f"cannot decode the sample '{path}' ({error}); {_INSTEAD}") from error


_INSTEAD = "reinstall pydicom, nibabel and Pillow with pip, or use ImageFolder"
_MISSING = "the sample image '{file}' is not installed (some systems omit test data); " + _INSTEAD
