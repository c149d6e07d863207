"""MedMNIST's files: any set, only the requested images, and never a pickle."""

from __future__ import annotations

import hashlib
import io
import socket
import zipfile
from pathlib import Path

import numpy as np
import pytest

from medpfl.core.errors import InputError
from medpfl.data import MedMNIST, download, medmnist
from medpfl.data.medmnist_sums import SUMS, URL
from medpfl.data.reading.npz import Npz


def arrays(shape, labels=1, classes=3, dtype=np.uint8, counts=(12, 4, 6)):
    random = np.random.default_rng(0)
    made = {}
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        made[f"{split}_images"] = random.integers(0, 256, (count, *shape)).astype(dtype)
        made[f"{split}_labels"] = random.integers(0, classes, (count, labels)).astype(dtype)
    made["train_labels"][:classes, 0] = range(classes)
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "set.npz"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_gray_images(path, save, split):
    made = arrays((28, 28))
    save(path, **made)
    data = MedMNIST(path, split, size=28).load()
    np.testing.assert_allclose(data.images[:, 0], made[f"{split}_images"] / 255, atol=1e-6)
    assert data.labels.tolist() == made[f"{split}_labels"][:, 0].tolist()
    assert data.classes == ("0", "1", "2")
    assert data.names[1] == f"{split}/1"
    assert data.patients == (None,) * len(data)


def test_color_images_and_volumes(path):
    made = arrays((16, 16, 3))
    np.savez(path, **made)
    color = MedMNIST(path, size=16).load().images
    np.testing.assert_allclose(color, made["train_images"].transpose(0, 3, 1, 2) / 255, atol=1e-6)
    made = arrays((16, 16, 16))
    np.savez(path, **made)
    volumes = MedMNIST(path, size=16).load()
    np.testing.assert_allclose(volumes.images[:, 0], made["train_images"] / 255, atol=1e-6)
    assert MedMNIST(path, size=8).load().shape == (1, 8, 8, 8)


def test_a_limit_reads_few_rows_evenly_over_the_classes(path, monkeypatch):
    made = arrays((28, 28), counts=(300, 4, 6))
    made["train_labels"][:] = np.repeat([0, 1, 2], [200, 80, 20])[:, None]
    np.savez_compressed(path, **made)
    read = []
    real = Npz.rows
    monkeypatch.setattr(Npz, "rows", lambda *a: read.append(real(*a)) or read[-1])
    data = MedMNIST(path, limit=30, size=28).load()
    assert data.labels.bincount().tolist() == [10, 10, 10]
    assert data.left_out == 270
    assert max(len(rows) for rows in read if rows.ndim == 3) == 30
    chosen = [int(name.partition("/")[2]) for name in data.names]
    np.testing.assert_allclose(data.images[:, 0], made["train_images"][chosen] / 255, atol=1e-6)


def test_several_labels_an_image(path):
    made = arrays((28, 28), labels=4, classes=2)
    np.savez(path, **made)
    any_of = MedMNIST(path).load()
    assert any_of.labels.tolist() == made["train_labels"].any(1).astype(int).tolist()
    assert any_of.classes == ("0", "1")
    assert MedMNIST(path, column=2).load().labels.tolist() == made["train_labels"][:, 2].tolist()
    with pytest.raises(InputError, match="column=4: an image has 4 labels"):
        MedMNIST(path, column=4).load()


def test_a_real_file(real_sets):
    file = real_sets / "pneumonia_mnist" / "pneumoniamnist.npz"
    data = MedMNIST(file, "test", size=28).load()
    with np.load(file) as whole:
        np.testing.assert_allclose(data.images[:, 0], whole["test_images"] / 255, atol=1e-6)
        assert data.labels.tolist() == whole["test_labels"][:, 0].tolist()


# What is wrong with a file


def refused(*arguments, **keywords) -> str:
    with pytest.raises(InputError) as caught:
        MedMNIST(*arguments, **keywords).load()
    return str(caught.value)


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('code was run')",)


def test_pickled_objects_are_refused_and_not_loaded(path):
    made = arrays((28, 28))
    made["train_images"] = np.array([Evil()], dtype=object)
    np.savez(path, **made)
    assert "holds pickled objects, and loading them could run code" in refused(path)
    made = arrays((28, 28)) | {"train_labels": np.array([Evil()] * 12, dtype=object)}
    np.savez(path, **made)
    assert "holds pickled objects" in refused(path)


def test_other_arrays(path):
    np.savez(path, images=np.zeros(3), labels=np.zeros(3))
    message = refused(path)
    assert "has no array 'train_images'; it has images, labels" in message
    assert "train, val and test" in message


def test_arrays_that_do_not_fit(path):
    np.savez(path, **arrays((28, 28)) | {"train_labels": np.zeros((5, 1), np.uint8)})
    assert "has 12 images and 5 labels in 'train'" in refused(path)
    np.savez(path, **arrays((28, 28)) | {"train_labels": np.zeros((12, 1))})
    assert "expected integers of shape (N, 1)" in refused(path)
    np.savez(path, **arrays((28,)))
    assert "has shape (12, 28)" in refused(path)
    np.savez(path, **arrays((28, 28), dtype=np.int64))
    assert "have type int64: give uint8, uint16, or floats in [0, 1]" in refused(path)
    np.savez(path, **arrays((28, 28), counts=(12, 4, 0)))
    assert "holds no image: take another split" in refused(path, "test")
    np.savez(path, **arrays((28, 28)) | {"train_images": np.asfortranarray(arrays((28, 28))["train_images"])})
    assert "is stored by columns" in refused(path)


def test_damaged_files(path):
    np.savez_compressed(path, **arrays((28, 28)))
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    assert "is not an .npz file" in refused(path)
    path.write_bytes(b"hello")
    assert "is not an .npz file" in refused(path)
    path.write_bytes(whole[:1500] + bytes(100) + whole[1600:])
    assert "is damaged" in refused(path)
    assert "there is no such file" in refused(path.with_name("none.npz"))


def test_an_array_that_is_cut_off(path):
    buffer = io.BytesIO()
    np.save(buffer, arrays((28, 28))["train_images"])
    np.savez(path, **{k: v for k, v in arrays((28, 28)).items() if k != "train_images"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train_images.npy", buffer.getvalue()[:-10])
    assert "'train_images'" in refused(path)
    assert "is truncated" in refused(path)


def test_a_header_that_is_cut_off(path):
    """numpy takes it for a Python 2 header, and passes it to its tokenizer."""
    buffer = io.BytesIO()
    np.save(buffer, arrays((28, 28))["train_images"])
    np.savez(path, **{k: v for k, v in arrays((28, 28)).items() if k != "train_images"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train_images.npy", buffer.getvalue().replace(b"}", b"\n", 1))
    assert "array 'train_images'" in refused(path)
    assert "is damaged" in refused(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"split": "training"}, "did you mean 'train'"), ({"column": -1}, "column=-1"), ({"size": 1}, "size=1")],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        MedMNIST("x", **arguments)


# Downloads


def test_nothing_is_downloaded_unless_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    message = refused("pneumoniamnist")
    assert "MedMNIST('pneumoniamnist', download=True)" in message
    assert "did you mean 'pneumoniamnist'" in refused("pneumonia_mnist", download=True)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Serve a set from the published address, with its checksum."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    np.savez(tmp_path / "served.npz", **arrays((28, 28)))
    content = (tmp_path / "served.npz").read_bytes()
    asked = []
    monkeypatch.setattr(download, "urlopen", lambda url, timeout: asked.append(url) or io.BytesIO(content))
    monkeypatch.setattr(medmnist, "SUMS", {"pathmnist": hashlib.md5(content).hexdigest()})
    return asked


def test_a_set_by_name_is_downloaded_once(served):
    data = MedMNIST("pathmnist", download=True).load()
    assert len(MedMNIST("pathmnist", download=True).load()) == len(data) == 12
    assert served == ["https://zenodo.org/records/10519652/files/pathmnist.npz"]


def test_a_wrong_checksum_is_refused_and_the_file_not_kept(served, tmp_path, monkeypatch):
    right = medmnist.SUMS["pathmnist"]
    monkeypatch.setitem(medmnist.SUMS, "pathmnist", "0" * 32)
    assert f"has the checksum {right}, not the published {'0' * 32}" in refused("pathmnist", download=True)
    assert list((tmp_path / "cache" / "medpfl").iterdir()) == []
    monkeypatch.setitem(medmnist.SUMS, "pathmnist", right)
    MedMNIST("pathmnist", download=True).load()
    (tmp_path / "cache" / "medpfl" / "pathmnist.npz").write_bytes(b"changed")
    assert "does not have the published checksum" in refused("pathmnist", download=True)


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def fails(*_, **__):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(download, "urlopen", fails)
    message = refused("pathmnist", download=True)
    assert "Network is unreachable" in message
    assert "download it yourself and give its path" in message


def test_the_table_of_sums_names_all_sets():
    assert len(SUMS) == 12 * 4 + 6 * 2
    assert len({name.partition("_")[0] for name in SUMS}) == 18
    assert all(len(bytes.fromhex(value)) == 16 for value in SUMS.values())
    assert len(set(SUMS.values())) == len(SUMS)
    assert URL.startswith("https://")
