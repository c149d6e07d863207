"""Data that Python already holds: arrays in any layout, data sets, iterables."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from medpfl.core.errors import InputError
from medpfl.data import Arrays
from medpfl.data.reading.intensity import unit

LABELS = [0, 1, 1, 0]


def pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(8, 20), st.integers(8, 20), st.sampled_from([1, 3]), st.booleans(), st.booleans())
def test_layouts(height, width, channels, last, as_numpy):
    images = pixels(4, channels, height, width)
    given_images = images.movedim(1, -1) if last else images
    data = Arrays(given_images.numpy() if as_numpy else given_images, LABELS).load()
    assert data.images.equal(images)
    assert data.labels.tolist() == LABELS
    assert data.names == ("0", "1", "2", "3")
    assert data.classes == ("0", "1")


def test_gray_without_channels_and_volumes():
    assert Arrays(pixels(4, 9, 10), LABELS).load().images.equal(pixels(4, 9, 10)[:, None])
    volumes = pixels(4, 1, 8, 9, 10)
    assert Arrays(volumes, LABELS).load().images.equal(volumes)
    assert Arrays(volumes, LABELS, size=8).load().shape == (1, 8, 8, 8)


def test_sixteen_bits_keep_their_precision():
    images = np.arange(65536, dtype=np.uint16).reshape(1, 256, 256)
    data = Arrays(images, [1]).load()
    assert len(data.images.unique()) == 65536
    np.testing.assert_allclose(data.images[0, 0], images[0] / 65535, atol=1e-7)


def test_pillow_images_and_sizes():
    red = Image.new("RGB", (12, 10), (255, 0, 51))
    data = Arrays([(red, 0), (Image.new("L", (8, 8), 102), torch.tensor(1))], size=8).load()
    assert data.shape == (3, 8, 8)
    np.testing.assert_allclose(data.images[0, :, 4, 4], [1, 0, 0.2], atol=1e-6)
    np.testing.assert_allclose(data.images[1, :, 4, 4], [0.4] * 3, atol=1e-6)


class Stream(IterableDataset):
    def __iter__(self):
        return iter((pixels(1, 8, 8, seed=i), i % 3) for i in range(7))


def test_data_sets_iterables_and_batches():
    images, labels = pixels(7, 1, 8, 8), torch.arange(7) % 3
    dataset = TensorDataset(images, labels)
    assert Arrays(dataset).load().images.equal(images)
    assert Arrays(DataLoader(dataset, batch_size=3)).load().images.equal(images)
    assert Arrays(zip(images, labels, strict=True)).load().labels.equal(labels)
    assert Arrays(Stream()).load().labels.tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_limits():
    images, labels = pixels(9, 1, 8, 8), [0] * 6 + [1] * 3
    some = Arrays(images, labels, limit=4).load()
    assert some.names == ("1", "4", "6", "8")
    assert some.left_out == 5
    dataset = TensorDataset(images, torch.tensor(labels))
    assert Arrays(dataset, limit=3).load().names == ("1", "4", "7")
    assert Arrays(iter(dataset), limit=2).load().names == ("0", "1")


def test_classes_and_patients():
    data = Arrays(pixels(4, 8, 8), LABELS, ["well", "sick", "rare"], ["a", None, "b", "b"]).load()
    assert data.classes == ("well", "sick", "rare")
    assert data.patients == ("a", None, "b", "b")


def test_the_repr_holds_nothing_of_the_images():
    assert repr(Arrays(pixels(4, 8, 8), LABELS, ["secret", "x"], ["ann"] * 4, size=16)) == "Arrays(size=16)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((pixels(4, 8, 8) * 255, LABELS), r"values from .* they must lie in \[0, 1\]"),
        ((pixels(4, 8, 8) - 0.5, LABELS), "leave normalization to the model"),
        ((torch.full((4, 8, 8), torch.nan), LABELS), "they must lie in"),
        ((np.zeros((4, 8, 8), np.int64), LABELS), "have type int64"),
        ((pixels(4, 8, 8), LABELS[:3]), "4 images and 3 labels"),
        ((pixels(4, 8, 8), LABELS, None, ["a"]), "4 images and 1 patients"),
        ((pixels(4, 8, 8), LABELS, ["only"]), "1 class names, but labels go up to 1"),
        ((pixels(4, 8, 8), [0.5, 1, 1, 0]), "the label of image 0 is 0.5"),
        ((pixels(4, 8, 8), [0, -1, 1, 0]), "the label of image 1 is -1"),
        ((pixels(4, 5, 8, 8), LABELS), r"image 0 has shape \(5, 8, 8\)"),
        ((pixels(4, 8, 8),), "not a pair"),
        (([pixels(8, 8)],), "not a pair"),
        (([],), "there are no images"),
        (([(pixels(8, 8), 0), (pixels(8, 9), 1)],), "different sizes: set one for all, such as size=32"),
    ],
)
def test_what_is_wrong_is_said(arguments, message):
    with pytest.raises(InputError, match=message):
        Arrays(*arguments).load()


@pytest.mark.parametrize("images", ["a/path", 3])
def test_from_the_command_line(images):
    with pytest.raises(InputError, match="it works only from Python"):
        Arrays(images)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, bool, np.float16, np.float64])
def test_unit(dtype):
    values = np.array([0, 1], dtype=dtype)
    white = np.iinfo(dtype).max if np.dtype(dtype).kind == "u" else 1
    assert unit(values).tolist() == pytest.approx([0, 1 / white])
    assert unit(values).dtype == torch.float32
