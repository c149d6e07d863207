"""``.npz`` headers with false claims, absurd labels, and channel axes."""

from __future__ import annotations

import io
import os
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy

from medpfl.core.errors import InputError
from medpfl.data import Arrays, MedMNIST, Segmented


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "set.npz"


def gray(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def refused(source) -> str:
    with pytest.raises(InputError) as error:
        source.load()
    return str(error.value)


def claiming(shape: tuple[int, ...], descr: str = "|u1", content: bytes = bytes(99)) -> bytes:
    """Return an array file whose header claims a shape."""
    file = io.BytesIO()
    npy.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue() + content


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("where", ["images", "labels"])
@pytest.mark.parametrize(
    ("shape", "descr", "why"),
    [
        ((10**12, 28, 28), "|u1", "claims to have 1000000000000 rows: at most 10000000 are supported"),
        ((10**12, 1), "|u1", "claims to have 1000000000000 rows"),
        ((10**7, 10**6, 10**6), "|u1", "is truncated: the file is smaller than its shape"),
        ((4, 28, 28), "<u8", "is truncated"),
        ((4, 28, 28), "|V2000000000", "is truncated"),
        ((4, 0, 28), "|u1", "holds no elements"),
        ((-4, 28, 28), "|u1", "holds no elements"),
        ((4, 28, 28), "|S0", "holds no elements"),
    ],
)
def test_a_header_that_claims_too_much(path, method, where, shape, descr, why):
    np.savez(path, **{"train_labels": np.zeros((4, 1), int), "train_images": gray(4, 28, 28)})
    with zipfile.ZipFile(path) as archive:
        other = "labels" if where == "images" else "images"
        kept = archive.read(f"train_{other}.npy")
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(f"train_{where}.npy", claiming(shape, descr))
        archive.writestr(f"train_{other}.npy", kept)
    tracemalloc.start()
    message = refused(MedMNIST(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert f"'train_{where}'" in message
    assert why in message
    assert peak < 2**24


def test_a_pipe_is_no_npz_file(path):
    os.mkfifo(path)
    assert "not a regular file" in refused(MedMNIST(path))
    assert "must hold a folder" in refused(Segmented(path))


@pytest.mark.parametrize("label", [10**12, 10**4, 2**63])
def test_a_label_that_is_absurd(path, label):
    labels = np.array([[0], [1], [label], [1]], np.uint64)
    np.savez(path, train_images=gray(4, 28, 28), train_labels=labels)
    assert f"go up to {label}" in refused(MedMNIST(path))
    assert str(label) in refused(Arrays(gray(4, 28, 28), labels))


# Axes


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((28, 28, 1), (1, 16, 16)),
        ((1, 28, 28), (1, 16, 16)),
        ((28, 28, 3), (3, 16, 16)),
        ((3, 28, 28), (3, 16, 16)),
        ((28, 28), (1, 16, 16)),
        ((28, 28, 28), (1, 16, 16, 16)),
        ((20, 28, 24), (1, 16, 16, 16)),
        ((28, 28, 28, 1), (1, 16, 16, 16)),
        ((1, 28, 28, 28), (1, 16, 16, 16)),
    ],
)
def test_a_side_of_1_or_3_is_an_axis_of_channels(path, shape, expected):
    images = gray(6, *shape)
    np.savez(path, train_images=images, train_labels=np.arange(6)[:, None] % 2)
    assert MedMNIST(path, size=16).load().shape == expected
    first = shape[0] in (1, 3) and len(shape) > 2
    channels = first or shape[-1] in (1, 3)
    as_first = images if first else np.moveaxis(images, -1, 1) if channels else images[:, None]
    whole = MedMNIST(path, size=28, fit="squash").load().images
    if set(as_first.shape[2:]) == {28}:
        np.testing.assert_allclose(whole, as_first / 255, atol=1e-6)


@pytest.mark.parametrize("shape", [(28, 28, 4), (28, 28, 2), (28,), (2, 28, 28, 28, 1), (28, 28, 28, 28)])
def test_other_axes_are_named(path, shape):
    np.savez(path, train_images=gray(2, *shape), train_labels=np.arange(2)[:, None])
    message = refused(MedMNIST(path))
    assert f"has shape {(2, *shape)}: expected (N, H, W[, C]) or (N, D, H, W[, C]), where C is 1 or 3" in message


def test_masks_of_one_channel_are_no_volumes(path):
    masks = (gray(4, 12, 12, 1) > 99).astype(np.uint8)
    np.savez(path, images=gray(4, 12, 12, 1), masks=masks)
    data = Segmented(path, size=12).load()
    assert data.shape == (1, 12, 12)
    assert data.masks is not None
    np.testing.assert_array_equal(data.masks, masks[..., 0])


def test_one_hot_labels_are_classes_and_several_labels_are_not(path):
    labels = np.array([0, 2, 1, 1])
    splits = {f"{split}_images": gray(4, 12, 12) for split in ("train", "test")}
    np.savez(path, **splits, train_labels=np.eye(3, dtype=int)[labels], test_labels=np.eye(3, dtype=int)[labels[::-1]])
    data = MedMNIST(path, size=12).load()
    assert (data.labels.tolist(), data.classes) == ([0, 2, 1, 1], ("0", "1", "2"))
    several = np.eye(3, dtype=int)[labels]
    several[0] = 0
    np.savez(path, **splits, train_labels=several, test_labels=np.eye(3, dtype=int)[labels])
    assert MedMNIST(path, size=12).load().labels.tolist() == [0, 1, 1, 1]


def test_a_size_has_a_bound(path):
    with pytest.raises(
        InputError, match="size=1000000000 must be a whole number of pixels, 8 or more and at most 4096"
    ):
        MedMNIST(path, size=10**9)
