"""Class folders: files that are read, skipped with a note, or refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medpfl.core import spec
from medpfl.core.errors import InputError
from medpfl.data import ImageFolder
from medpfl.data.reading.listing import _shares, list_images

REAL = Path(__file__).parents[2].parent / "shared" / "data"


def add(path: Path, value: int = 128, mode: str = "L", size: tuple[int, int] = (40, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (value,) * 3 if mode == "RGB" else value).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, name in enumerate(["benign/2.png", "benign/1.PNG", "malignant/deep/er/3.jpg", "malignant/0.bmp"]):
        add(tmp_path / name, 50 * i)
    return tmp_path


def test_images_labels_and_names_in_order(folder):
    data = ImageFolder(folder, size=16).load()
    assert data.classes == ("benign", "malignant")
    assert data.names == ("benign/1.PNG", "benign/2.png", "malignant/0.bmp", "malignant/deep/er/3.jpg")
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert data.labels.dtype == torch.int64
    assert data.images.shape == (4, 1, 16, 16)
    assert data.images.dtype == torch.float32
    np.testing.assert_allclose(data.images.mean((1, 2, 3)), np.array([50, 0, 150, 100]) / 255, atol=1e-6)
    assert data.patients == (None,) * 4
    assert data.skipped == ()
    assert data.left_out == 0


def test_repr_says_how_images_are_read_but_not_where_from(folder):
    assert repr(ImageFolder(folder, size=64, channels=3)) == "ImageFolder(size=64, channels=3)"
    source = ImageFolder(folder, fit="squash")
    assert spec.build(f"ImageFolder({str(folder)!r}, fit='squash')", {"ImageFolder": ImageFolder}) == source


def test_what_is_not_an_image_or_hidden_is_ignored(folder):
    for name in [".hidden/a.png", "benign/.cache/b.png", "benign/._1.png", "loose.png"]:
        add(folder / name)
    (folder / "benign" / "notes.txt").write_text("x")
    (folder / "empty").mkdir()
    data = ImageFolder(folder).load()
    assert len(data) == 4
    assert data.classes == ("benign", "malignant")
    assert data.skipped == ()


def test_home_is_found(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(ImageFolder(f"~/{folder.name}").load()) == 4


@pytest.mark.parametrize(("given_channels", "expected"), [(None, 3), (1, 1), (3, 3)])
def test_channels_of_a_mixed_folder(folder, given_channels, expected):
    add(folder / "benign" / "color.png", 200, "RGB")
    assert ImageFolder(folder, channels=given_channels).load().shape == (expected, 32, 32)


def test_an_unreadable_color_image_does_not_make_all_color(folder):
    color = add(folder / "benign" / "color.png", 200, "RGB")
    color.write_bytes(color.read_bytes()[:50])
    assert ImageFolder(folder).load().shape[0] == 1


def test_fit_is_obeyed(tmp_path):
    half = Image.new("L", (80, 40))
    half.paste(255, (0, 0, 16, 40))
    (tmp_path / "a").mkdir()
    half.save(tmp_path / "a" / "x.png")
    assert ImageFolder(tmp_path, fit="crop").load().images.max() == 0
    assert ImageFolder(tmp_path, fit="squash").load().images.mean() == pytest.approx(0.2, abs=0.01)


# What is wrong with a file


def test_bad_files_are_skipped_and_listed(folder, monkeypatch):
    good = add(folder / "benign" / "1.PNG", size=(300, 300)).read_bytes()
    (folder / "benign" / "cut.png").write_bytes(good[: len(good) // 2])
    (folder / "benign" / "text.jpg").write_text("not a picture")
    (folder / "malignant" / "empty.tif").touch()
    (folder / "malignant" / "gone.png").symlink_to("nowhere")
    add(folder / "malignant" / "bomb.png", size=(400, 400))  # a warning: less than twice too large
    add(folder / "malignant" / "bomb2.png", size=(900, 900))  # an error
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    data = ImageFolder(folder).load()
    assert len(data) == 4
    assert dict(line.split(": ") for line in data.skipped) == {
        "benign/cut.png": data.skipped[0].split(": ")[1],
        "benign/text.jpg": "not an image",
        "malignant/bomb.png": "more than 100000 pixels",
        "malignant/bomb2.png": "more than 100000 pixels",
        "malignant/empty.tif": "empty file",
        "malignant/gone.png": "a link to nothing",
    }
    assert str(folder) not in str(data.skipped)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_and_folders_without_permission_are_skipped(folder):
    (folder / "benign" / "1.PNG").chmod(0)
    (folder / "malignant" / "deep").chmod(0)
    data = ImageFolder(folder).load()
    (folder / "malignant" / "deep").chmod(stat.S_IRWXU)
    assert set(data.skipped) == {"benign/1.PNG: Permission denied", "malignant/deep: Permission denied"}


def test_a_file_that_cannot_be_opened_is_listed(folder, monkeypatch):
    real = Path.open

    def guarded(path, *args, **kwargs):
        if path.name == "1.PNG":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", guarded)
    assert ImageFolder(folder).load().skipped == ("benign/1.PNG: Permission denied",)


def test_a_folder_that_cannot_be_searched_is_listed(folder, monkeypatch):
    real = os.scandir

    def scandir(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    data = ImageFolder(folder).load()
    assert data.skipped == ("malignant/deep: Permission denied",)
    assert len(data) == 3


def test_a_class_of_which_nothing_can_be_read_is_left_out(folder):
    (folder / "aaa").mkdir()
    (folder / "aaa" / "x.png").touch()
    data = ImageFolder(folder).load()
    assert data.classes == ("benign", "malignant")
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert data.skipped == ("aaa/x.png: empty file",)


def test_links_do_not_hang(folder):
    (folder / "benign" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "self").symlink_to(folder / "self")
    (folder / "up").symlink_to(folder, target_is_directory=True)
    (folder / "further_up").symlink_to(folder.parent, target_is_directory=True)
    assert ImageFolder(folder).load().classes == ("benign", "malignant")


def test_a_class_folder_may_be_a_link(folder, tmp_path_factory):
    elsewhere = add(tmp_path_factory.mktemp("disk") / "x.png")
    (folder / "other").symlink_to(elsewhere.parent, target_is_directory=True)
    assert ImageFolder(folder).load().names[-1] == "other/x.png"


def test_names_that_are_not_utf8_can_be_printed(folder):
    raw = os.fsencode(folder / "benign") + b"/\xff.png"
    try:
        Path(os.fsdecode(raw)).write_bytes((folder / "benign" / "1.PNG").read_bytes())
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    assert "benign/\ufffd.png" in ImageFolder(folder).load().names


# What is wrong with the folder


def refused(source: ImageFolder) -> str:
    with pytest.raises(InputError) as caught:
        source.load()
    return str(caught.value)


def test_no_such_folder(tmp_path):
    assert "No such file or directory" in refused(ImageFolder(tmp_path / "none"))
    assert "null" in refused(ImageFolder("a\0b"))


def test_a_file_is_no_folder(folder):
    assert "is a file" in refused(ImageFolder(folder / "benign" / "1.PNG"))


def test_no_class_folders(tmp_path):
    assert refused(ImageFolder(tmp_path)).endswith("malignant/0002.png")
    add(tmp_path / "x.png")
    message = refused(ImageFolder(tmp_path))
    assert "expected one folder per class" in message
    assert "1 image(s) lie directly in it" in message


def test_no_images(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "b" / "x.dcm").touch()
    assert refused(ImageFolder(tmp_path)).startswith("no images (bmp, jpeg, jpg, png, tif, tiff)")
    assert refused(ImageFolder(tmp_path)).endswith(": a, b")


def test_all_images_bad(tmp_path):
    (tmp_path / "a").mkdir()
    for i in range(5):
        (tmp_path / "a" / f"{i}.png").touch()
    message = refused(ImageFolder(tmp_path))
    assert "a/0.png: empty file; a/1.png: empty file; a/2.png: empty file; and 2 more" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 4}, "size=4"),
        ({"fit": "squish"}, "did you mean 'squash'"),
        ({"channels": 4}, "channels=4"),
        ({"limit": 0}, "limit=0"),
        ({"limit": 2.5}, "limit=2.5"),
        ({"limit": None}, "limit=None"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        ImageFolder("x", **arguments)


# The limit


def test_limit_is_even_over_classes_and_files(tmp_path):
    for i in range(20):
        add(tmp_path / "many" / f"{i:02}.png", size=(8, 8))
    for i in range(3):
        add(tmp_path / "few" / f"{i}.png", size=(8, 8))
    data = ImageFolder(tmp_path, limit=8).load()
    assert data.names == (
        *("few/0.png", "few/1.png", "few/2.png"),
        *("many/02.png", "many/06.png", "many/10.png", "many/14.png", "many/18.png"),
    )
    assert data.left_out == 15
    assert ImageFolder(tmp_path, limit=8).load().names == data.names
    assert ImageFolder(tmp_path, limit=23).load().left_out == 0


def test_a_limit_below_the_classes_would_change_the_question(folder):
    assert "limit=1 is below the number of classes" in refused(ImageFolder(folder, limit=1))


@pytest.mark.slow
@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(1, 300))
def test_shares_use_the_limit_and_are_even(sizes, limit):
    shares = _shares(sizes, limit)
    assert sum(shares) == min(limit, sum(sizes))
    assert all(share <= size for share, size in zip(shares, sizes, strict=True))
    full = max(shares)
    assert all(share == size or share >= full - 1 for share, size in zip(shares, sizes, strict=True))


def test_listing_opens_no_file(folder, monkeypatch):
    monkeypatch.setattr(Path, "open", None)
    assert len(list_images(folder, 2).chosen) == 2


# index.csv


def test_patients(folder):
    (folder / "index.csv").write_text(
        "patient_id,file,age\np1,benign/1.PNG,3\n,benign/2.png,4\np1,./malignant/0.bmp\np9,gone.png,5,extra\n",
        encoding="utf-8-sig",
    )
    assert ImageFolder(folder).load().patients == ("p1", None, "p1", None)


def test_patients_unknown(folder):
    (folder / "index.csv").write_text("file\nbenign/1.PNG\n")
    assert ImageFolder(folder).load().patients == (None,) * 4


@pytest.mark.parametrize(
    "content",
    [b"", b"path,patient_id\nx,y\n", b"file;patient_id\nx;y\n", b"file,patient_id\n\xff\xfe,y\n", b"\0\1\2"],
    ids=["empty", "no-file-column", "semicolons", "not-utf8", "binary"],
)
def test_malformed_index(folder, content):
    (folder / "index.csv").write_bytes(content)
    message = refused(ImageFolder(folder))
    assert str(folder / "index.csv") in message
    assert "'file'" in message
    assert "'patient_id'" in message


def test_index_is_a_folder(folder):
    (folder / "index.csv").mkdir()
    assert "a folder, not a file" in refused(ImageFolder(folder))


def test_index_with_an_endless_cell(folder):
    (folder / "index.csv").write_text('file\n"' + "x" * 200_000)
    assert "field larger" in refused(ImageFolder(folder))


# Real sets


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count", "channels", "classes"),
    [
        ("brain_mri", 240, 1, ("glioma", "meningioma", "notumor", "pituitary")),
        ("covid_xray", 180, 3, ("covid", "normal", "pneumonia")),
        ("melanoma", 110, 3, ("benign", "malignant")),
    ],
)
def test_real_sets(name, count, channels, classes):
    if not (REAL / name).is_dir():
        pytest.skip(f"{REAL / name} is not here")
    data = ImageFolder(REAL / name).load()
    assert data.images.shape == (count, channels, 32, 32)
    assert data.classes == classes
    assert data.skipped == ()
    assert data.images.flatten(1).std(1).min() > 0.02
    known = [patient for patient in data.patients if patient]
    assert len(set(known)) == {"brain_mri": 0, "covid_xray": 156, "melanoma": 16}[name]
    with Image.open(REAL / name / data.names[7]) as image:
        whole = image.convert("L" if channels == 1 else "RGB").resize((32, 32), Image.Resampling.BILINEAR)
    squashed = ImageFolder(REAL / name, fit="squash").load().images[7]
    reference = np.asarray(whole).reshape(32, 32, -1).transpose(2, 0, 1) / 255
    assert abs(squashed.numpy() - reference).max() < 2 / 255
