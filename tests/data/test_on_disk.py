"""Sets too large to be held are decoded when they are used, and are otherwise the same."""

from __future__ import annotations

import os
import warnings
import weakref

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from medpfl.core.errors import InputError
from medpfl.core.shared_memory import opened, shared
from medpfl.data import Dicom, ImageFolder, Nifti, Thresholded, folder, on_disk
from medpfl.runs.study_key import StudyIndex
from tests.auditing.audit_cases import draw_folder, plain, tiny
from tests.data.made_dicom import dicom


def pictures(root):
    draw_folder(root, {"benign": 5, "malignant": 4})
    draw_folder(root, {"malignant": 2}, color=True, seed=1)
    (root / "benign" / "2.png").write_bytes(b"no picture")
    (root / "benign" / "3.png").write_bytes((root / "benign" / "4.png").read_bytes())
    return ImageFolder(root, 16)


def series(root):
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (4, 16, 16), np.uint8)
        dicom(root / f"{i}.dcm", pixels, NumberOfFrames=4, PatientID=str(i // 2))
    dicom(root / "3.dcm", pixels, NumberOfFrames=9, PatientID="1")  # with fewer pixels than it says
    return Dicom(root, size=16, limit=7)


def volumes(root, plane="axial"):
    root.mkdir()
    for i in range(3):
        values = np.random.default_rng(i).integers(0, 255, (12, 14, 13), dtype=np.uint8)
        values[:, :, 2] = 7  # a slice with a single value
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), root / f"{i}.nii")
    return Nifti(root, plane, size=12)


SOURCES = {
    "folder": pictures,
    "dicom": series,
    "slices": volumes,
    "volumes": lambda root: volumes(root, "volume"),
    "masks": lambda root: Thresholded(pictures(root).path, 16),
}


def loaded(source, monkeypatch, held):
    monkeypatch.setattr(on_disk, "HELD", held)
    return source.load()


@pytest.mark.parametrize("name", SOURCES)
def test_images_on_disk_are_those_that_would_be_held(name, tmp_path, monkeypatch):
    source = SOURCES[name](tmp_path / "data")
    held, data = loaded(source, monkeypatch, 2**29), loaded(source, monkeypatch, 100)
    assert isinstance(held.images, torch.Tensor)
    assert isinstance(data.images, on_disk.OnDisk)
    assert (data.images.shape, data.images.ndim, data.images.dtype) == (
        held.images.shape,
        held.images.ndim,
        torch.float32,
    )
    assert len(data) == len(held) > 2
    assert torch.cat(list(data.parts())).equal(held.images)
    for index in (0, -1, slice(1, 3), [2, 0, 2], torch.tensor([[1, 2], [0, 1]]), torch.arange(len(data)) % 2 == 0, []):
        assert data.images[index].equal(held.images[index])
    for field in ("classes", "names", "patients", "skipped", "left_out", "notes", "spacing", "shape", "gray"):
        assert getattr(data, field) == getattr(held, field)
    assert data.labels.equal(held.labels)
    assert data.copies.equal(held.copies)
    index = StudyIndex("secret", held, "d")
    assert index.fingerprint(data) == index.fingerprint(held)


def test_only_the_images_of_an_index_are_decoded(tmp_path, monkeypatch):
    source, decoded = pictures(tmp_path), []
    monkeypatch.setattr(folder, "decode", lambda path, own=folder.decode: decoded.append(path.name) or own(path))
    data = loaded(source, monkeypatch, 100)
    assert len(decoded) == 9, "each file once, to know which can be read"
    decoded.clear()
    assert len(data.images[[3, 1, 3]]) == 3
    assert sorted(decoded) == ["1.png", "4.png"]


def test_files_above_the_limit_are_never_decoded(tmp_path, monkeypatch):
    source, decoded = ImageFolder(draw_folder(tmp_path, {"a": 30, "b": 30}), 16, limit=6), []
    monkeypatch.setattr(folder, "decode", lambda path, own=folder.decode: decoded.append(path) or own(path))
    data = source.load()
    assert len(data) == len(decoded) == 6
    assert data.left_out == 54


def test_decoded_images_do_not_pile_up(tmp_path, monkeypatch):
    source, alive, most = ImageFolder(draw_folder(tmp_path, {"a": 90, "b": 90}, size=16), 16), set(), []

    def fitted(*arguments, own=folder.fitted):
        image = own(*arguments)
        alive.add(id(image))
        weakref.finalize(image, alive.discard, id(image))
        most.append(len(alive))
        return image

    monkeypatch.setattr(folder, "fitted", fitted)
    data = loaded(source, monkeypatch, 100)
    assert all(len(part) for part in data.parts())
    assert len(most) == 360
    assert max(most) <= 2 * on_disk._TOGETHER


@pytest.mark.parametrize("change", ["other", "broken", "gone"])
def test_a_file_that_changed_is_refused(change, tmp_path, monkeypatch):
    data = loaded(pictures(tmp_path), monkeypatch, 100)
    path = tmp_path / "malignant" / "1.png"
    if change == "other":
        Image.fromarray(np.zeros((24, 24), np.uint8)).save(path)
    elif change == "broken":
        path.write_bytes(b"no picture")
    else:
        path.unlink()
    place, filters = data.names.index("malignant/1.png"), list(warnings.filters)
    with pytest.raises(InputError, match="changed while it was in use"):
        data.images[place]
    assert warnings.filters == filters, "readers mute warnings no longer"
    assert len(data.images[[place - 1]]) == 1


def test_color_that_comes_late_makes_all_images_color_and_may_make_them_too_many(tmp_path, monkeypatch):
    source = pictures(tmp_path)
    held = loaded(source, monkeypatch, 2**29)
    assert held.shape == (3, 16, 16)
    elements = 9 * 16 * 16  # of all, if they were gray
    data = loaded(source, monkeypatch, elements)
    assert isinstance(data.images, on_disk.OnDisk)
    assert data.images[:].equal(held.images)
    assert isinstance(loaded(source, monkeypatch, 3 * elements).images, torch.Tensor)


@pytest.mark.slow
def test_an_audit_has_the_same_rows_and_identity(tmp_path, monkeypatch):
    source, rows = pictures(tmp_path / "data"), []
    for held, out in ((2**29, "a"), (100, "b"), (100, "a")):
        monkeypatch.setattr(on_disk, "HELD", held)
        report = tiny(source, out=tmp_path / out, numbers_only=True, best_match=True)
        rows.append(plain(report.rows))
    assert rows[0] == rows[1] == rows[2]
    assert len(rows[0]) > 4
    (tmp_path / "data" / "benign" / "0.png").unlink()
    with pytest.raises(InputError, match="other pixels"):
        tiny(source, out=tmp_path / "a", numbers_only=True, best_match=True)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only Linux has memory without a name")
def test_many_images_are_where_other_processes_find_them(tmp_path):
    draw_folder(tmp_path, {"benign": 5, "malignant": 4})
    few, many = ImageFolder(tmp_path, 16).load().images, ImageFolder(tmp_path, 224).load().images
    assert shared(few) is None
    assert (place := shared(many)) is not None
    assert torch.equal(opened(*place), many)
