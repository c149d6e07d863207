"""Every member of ``data.__all__`` keeps its role's contract. One row per source."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from medpfl import data
from medpfl.core.errors import InputError
from medpfl.core.roles import DataSource
from medpfl.core.spec import build, registry
from medpfl.data import Arrays, Dicom, ImageFolder, Kaggle, MedMNIST, Nifti, Samples, Segmented, Thresholded
from medpfl.data.images import LabelledImages
from medpfl.data.partition import IID
from medpfl.data.target import LimitedTarget, Target
from tests.data.made_dicom import dicom

MARK = "Zyxwvut"
"""In every path, name and id."""


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


def pictures(root: Path) -> Path:
    for i in range(6):
        path = root / ("benign" if i % 2 else "malignant") / f"{MARK}{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random(20, 24, seed=i)).save(path)
    return root


def dicom_folder(root: Path) -> Path:
    for i in range(6):
        place = root / ("benign" if i % 2 else "malignant") / f"{MARK}{i}.dcm"
        dicom(place, random(20, 24, seed=i), PatientID=f"{MARK}{i // 2}", PatientName=MARK)
    return root


def nifti_folder(root: Path) -> Path:
    root.mkdir()
    for i in range(2):
        values = random(12, 14, 3, seed=i)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), root / f"{MARK}{i}.nii.gz")
    return root


def npz(path: Path) -> Path:
    sets = {"train": 6, "val": 2, "test": 2}
    images = {f"{split}_images": random(count, 28, 28) for split, count in sets.items()}
    labels = {f"{split}_labels": np.arange(count)[:, None] % 2 for split, count in sets.items()}
    np.savez(path, **images, **labels)
    return path


def with_masks(root: Path) -> Path:
    for i in range(6):
        mask = np.zeros((20, 24), dtype=np.uint8)
        mask[4 : 9 + i, 6:15] = 255 if i % 2 else 128
        for name, picture in (("images", random(20, 24, seed=i)), ("masks", mask)):
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(root / name / f"{MARK}{i}.png")
    return root


ROWS = {
    "Arrays": lambda place: Arrays(random(6, 20, 20), [0, 1] * 3, ["a", "b"], [MARK] * 6, size=16),
    "Dicom": lambda place: Dicom(dicom_folder(place), size=16, group="patient", labels="folders"),
    "ImageFolder": lambda place: ImageFolder(pictures(place), size=16),
    "Kaggle": lambda place: Kaggle("melanoma", pictures(place / "melanoma_cancer_dataset" / "train").parents[1]),
    "MedMNIST": lambda place: MedMNIST(npz(place.with_suffix(".npz")), "test", size=16),
    "Nifti": lambda place: Nifti(nifti_folder(place), size=16),
    "Samples": lambda place: Samples(size=16),
    "Segmented": lambda place: Segmented(with_masks(place), size=16),
    "Thresholded": lambda place: Thresholded(pictures(place), size=16),
}
SOURCES = pytest.mark.parametrize("name", ROWS)


@pytest.fixture
def source(name: str, tmp_path: Path) -> DataSource:
    return ROWS[name](tmp_path / MARK)


def test_every_source_has_a_row():
    assert sorted(ROWS) == data.__all__


@SOURCES
def test_images_labels_and_names(name, source):
    loaded = source.load()
    count = len(loaded)
    assert isinstance(loaded, LabelledImages)
    assert count >= 2
    assert loaded.images.dtype == torch.float32
    assert loaded.images.shape == (count, *loaded.shape)
    assert 0 <= loaded.images.min() < loaded.images.max() <= 1
    assert loaded.labels.shape == (count,)
    assert loaded.labels.dtype == torch.int64
    assert 0 <= loaded.labels.min() <= loaded.labels.max() < len(loaded.classes)
    assert len(loaded.classes) >= 2
    assert len(set(loaded.classes)) == len(loaded.classes)
    assert len(set(loaded.names)) == len(loaded.names) == len(loaded.patients) == count
    assert loaded.skipped == ()
    assert loaded.left_out == 0


@SOURCES
def test_the_same_every_time(name, source):
    one, other = source.load(), source.load()
    assert one.images.equal(other.images)
    assert one.labels.equal(other.labels)
    assert (one.names, one.patients, one.classes) == (other.names, other.patients, other.classes)


@SOURCES
def test_what_is_written_of_a_source_names_no_place_and_nobody(name, source):
    assert MARK not in repr(source)
    assert not any(MARK in label for label in source.load().classes)
    assert repr(source).startswith(f"{name}(")


@pytest.mark.parametrize("name", [name for name in ROWS if name != "Arrays"])
def test_what_is_written_and_the_path_make_it_again(name, source):
    written = repr(source).removeprefix(f"{name}(").removesuffix(")")
    place = f"path={source.path!r}, " if hasattr(source, "path") else ""
    again = build(f"{name}({place}{written})", registry(data), "data source")
    assert repr(again) == repr(source)
    assert getattr(again, "path", None) == getattr(source, "path", None)


@SOURCES
def test_images_can_be_dealt_to_clients(name, source):
    loaded = source.load()
    patients = len({p if p is not None else i for i, p in enumerate(loaded.patients)})
    clients = IID(min(2, patients)).deal(loaded, torch.Generator().manual_seed(0))
    assert sorted(i for client in clients for i in client.tolist()) == list(range(len(loaded)))
    owners = [{loaded.patients[i] for i in client.tolist()} - {None} for client in clients]
    assert len(owners) < 2 or not owners[0] & owners[1]


WRONG = {
    "size": {
        7: "size=7 .* 8 or more",
        4097: "at most 4096",
        32.0: "size=32.0 ",
        True: "size=True ",
        "32": "size='32' ",
    },
    "fit": {"crops": "did you mean 'crop'", None: "there is no fit None; known: crop, squash"},
    "channels": {2: "channels=2 ", True: "channels=True ", "3": "channels='3' "},
    "limit": {0: "limit=0 .* 1 or more", 2.0: "limit=2.0 ", True: "limit=True ", None: "limit=None "},
}


@SOURCES
def test_size_fit_channels_and_limit_are_those_of_every_source(name, source):
    assert isinstance(source, Target)
    limited = isinstance(source, LimitedTarget)
    assert [field.name for field in fields(source) if field.name in WRONG] == list(WRONG)[: 3 + limited]
    for argument in list(WRONG)[: 3 + limited]:
        for value, message in WRONG[argument].items():
            with pytest.raises(InputError, match=message):
                replace(source, **{argument: value})


@SOURCES
def test_a_source_is_equal_to_one_of_the_same_arguments_except_in_memory(name, source):
    assert source == source  # noqa: PLR0124
    assert (source == replace(source)) is (name != "Arrays")
    assert source != replace(source, fit="squash")


@pytest.mark.parametrize(
    ("source", "written"),
    [
        (ImageFolder("x", 64, "squash", 3, 7), "ImageFolder(size=64, fit='squash', channels=3, limit=7)"),
        (Dicom("x", None, "file", (40, 400), 64), "Dicom(group='file', window=(40, 400), size=64)"),
        (Nifti("x", "volume", None, 1, 64), "Nifti(plane='volume', frame=1, size=64)"),
        (MedMNIST("x", "test", 2, False, 64), "MedMNIST(split='test', column=2, size=64)"),
        (Kaggle("melanoma", None, "test", 64), "Kaggle(name='melanoma', split='test', size=64)"),
        (
            Segmented("x", 64, "crop", 1, 7, "volume", 1),
            "Segmented(size=64, channels=1, limit=7, plane='volume', frame=1)",
        ),
        (Arrays([], None, None, None, 64, "squash"), "Arrays(size=64, fit='squash')"),
        (Thresholded("x", 64, "squash", 3), "Thresholded(size=64, fit='squash', channels=3)"),
        (Samples(64, "squash", 3), "Samples(size=64, fit='squash', channels=3)"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_arguments_keep_their_order(source, written):
    assert repr(source) == written
