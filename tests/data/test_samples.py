"""The images bundled with pydicom and nibabel: real, different, and as a viewer shows them."""

from __future__ import annotations

import socket
from collections import Counter

import numpy as np
import pydicom
import pytest
import torch
from pydicom.data import get_testdata_file

from medpfl.core.errors import InputError
from medpfl.data import Samples, samples
from medpfl.data.images import LabelledImages
from medpfl.data.reading import sample_cuts


@pytest.fixture(scope="module")
def data() -> LabelledImages:
    return Samples().load()


def test_enough_in_each_class(data):
    assert len(data) >= 48
    assert data.classes == ("ct", "mr_functional", "mr_structural", "ultrasound")
    counts = data.labels.bincount()
    assert counts.min() >= 12
    assert counts.max() <= 1.5 * counts.min()
    assert data.images.shape == (len(data), 1, 32, 32)
    assert data.images.dtype == torch.float32
    assert 0 <= data.images.min() <= data.images.max() <= 1


def test_every_sample_shows_something(data):
    big = Samples(size=64).load().images.flatten(1)
    assert big.std(1).min() > 0.07
    assert ((big > 0.05).float().mean(1) > 0.2).all()  # at most four fifths background


def test_all_samples_differ(data):
    flat = data.images.flatten(1) - data.images.mean((1, 2, 3))[:, None]
    correlation = flat @ flat.T / flat.norm(dim=1).outer(flat.norm(dim=1))
    assert correlation.fill_diagonal_(0).abs().max() < 0.96
    assert len(set(data.names)) == len(data)


def test_a_file_is_a_patient_and_no_class_is_one_patient(data):
    assert all(name.startswith(f"{patient}#") for name, patient in zip(data.names, data.patients, strict=True))
    by_class = Counter(label for label, _ in set(zip(data.labels.tolist(), data.patients, strict=True)))
    assert min(by_class.values()) >= 2
    assert sum(by_class.values()) == len(set(data.patients)) == 9


def test_same_every_time(data):
    again = Samples().load()
    assert data.images.equal(again.images)
    assert data.names == again.names


def test_squares_lie_inside_their_pictures():
    for (_, file), crops in sample_cuts.CROPS.items():
        header = pydicom.dcmread(get_testdata_file(file, download=False), stop_before_pixels=True)
        for top, left, side, frame in crops:
            assert min(top, left) >= 0
            assert top + side <= header.Rows
            assert left + side <= header.Columns
            assert frame < int(header.get("NumberOfFrames", 1))


def test_a_crop_is_of_the_windowed_picture(data):
    header = pydicom.dcmread(get_testdata_file("MR_small.dcm", download=False))
    center, width = header.WindowCenter, header.WindowWidth
    shown = ((header.pixel_array - (center - 0.5)) / (width - 1) + 0.5).clip(0, 1)
    halved = shown.reshape(32, 2, 32, 2).mean((1, 3))
    ours = data.images[data.names.index("pydicom/MR_small.dcm#crop0"), 0].numpy()
    assert np.corrcoef(ours.ravel(), halved.ravel())[0, 1] > 0.99
    assert abs(ours - halved).mean() < 0.02


def test_color_and_size_on_request():
    color = Samples(size=48, channels=3).load()
    assert color.shape == (3, 48, 48)
    doppler = color.images[color.names.index("pydicom/examples_jpeg2k.dcm#crop0")]
    assert (doppler[0] - doppler[2]).max() > 0.5  # orange
    ct = color.images[0]
    assert ct[0].equal(ct[2])


def test_nothing_is_downloaded(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert len(Samples().load())


@pytest.mark.parametrize("table", ["CROPS", "SLICES"])
def test_missing_test_files(monkeypatch, table):
    key = ("ct", "no_such_file.dcm")
    monkeypatch.setattr(samples, table, {key: (sample_cuts.Slice("axial", 0),)})
    with pytest.raises(InputError, match=r"no_such_file.dcm' is not installed .* or use ImageFolder"):
        Samples().load()


def test_undecodable_test_files(monkeypatch):
    def broken(*_):
        raise RuntimeError("no decoder for JPEG 2000")

    monkeypatch.setattr(samples, "dicom_frame", broken)
    with pytest.raises(InputError, match=r"cannot decode the sample .*no decoder for JPEG 2000"):
        Samples().load()


def test_wrong_arguments():
    with pytest.raises(InputError, match="size=2"):
        Samples(size=2)
    with pytest.raises(InputError, match="did you mean 'crop'"):
        Samples(fit="crp")  # pyright: ignore[reportArgumentType]
