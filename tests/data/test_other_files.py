"""Files that are not read: other formats are counted, no class is lost, pipes and loops never hang."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from medpfl.core.errors import InputError
from medpfl.data import Dicom, ImageFolder, Nifti, Segmented
from medpfl.data.choose import source_at
from medpfl.data.reading.decode import reason
from tests.data.made_dicom import dicom


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 12), np.uint8)).save(path)
    return path


def refused(source) -> str:
    with pytest.raises(InputError) as error:
        source.load()
    return str(error.value)


@pytest.fixture
def classes(tmp_path) -> Path:
    for i in range(4):
        picture(tmp_path / "ab"[i % 2] / f"{i}.png", i)
    return tmp_path


@pytest.mark.parametrize("suffix", ["webp", "gif", "pgm", "jp2", "jfif", "zip", ""])
def test_a_class_of_another_format_is_named(classes, suffix):
    for i in range(8):
        (classes / "c").mkdir(exist_ok=True)
        (classes / "c" / f"{i}{'.' * bool(suffix)}{suffix}").write_bytes(b"x")
    message = refused(ImageFolder(classes))
    assert f"the folder 'c' in '{classes}' holds no readable picture" in message
    assert f"Left out 8 files in other formats (8 {'.' + suffix if suffix else 'without a suffix'})" in message
    assert "Supported formats: bmp, jpeg, jpg, png, tif, tiff." in message


def test_other_formats_beside_pictures_are_counted(classes):
    for name in ("a/1.webp", "a/2.webp", "b/3.GIF", "b/notes.txt", "b/README", "x.json"):
        (classes / name).write_bytes(b"x")
    (classes / "docs").mkdir()
    (classes / "docs" / "licence.md").write_text("x")
    picture(classes / "loose.png")
    assert ImageFolder(classes).load().notes == (
        "Left out 1 picture beside the class folders: they have no class.",
        "Not counted as a class, because it holds no picture: 'docs'.",
        "Left out 3 files in other formats (2 .webp, 1 .gif). Supported formats: bmp, jpeg, jpg, png, tif, tiff.",
    )


def test_a_class_that_cannot_be_read_is_named(classes):
    (classes / "c").mkdir()
    (classes / "c" / "0.png").write_bytes(b"x")
    assert "No picture of class 'c' could be read, so this class is left out." in ImageFolder(classes).load().notes


def test_folders_of_other_formats_only(tmp_path):
    for name in ("a/0.webp", "b/1.webp"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
    assert f"in the class folders of '{tmp_path}' (but 2 .webp): a, b" in refused(ImageFolder(tmp_path))


def test_other_formats_beside_dicom_and_nifti_are_counted(tmp_path):
    dicom(tmp_path / "dcm" / "0.dcm", np.arange(144, dtype=np.uint8).reshape(12, 12), PatientID="p")
    (tmp_path / "nii").mkdir()
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).random((8, 8, 8)), np.eye(4)), tmp_path / "nii" / "0.nii")
    for kind in ("dcm", "nii"):
        for name in ("1.nrrd", "2.nrrd", "side.json", "x.tsv"):
            (tmp_path / kind / name).write_text("x")
    note = "Left out 2 files in other formats (2 .nrrd). Supported formats: "
    assert Dicom(tmp_path / "dcm").load().notes == (note + "DICOM.",)
    assert Nifti(tmp_path / "nii").load().notes == (note + "NIfTI (.nii, .nii.gz).",)


@pytest.mark.parametrize("name", ["set.zip", "set.tar.gz", "set.tgz"])
def test_an_archive_is_to_be_unpacked(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(InputError, match="is an archive: unpack it and give the folder"):
        source_at(str(tmp_path / name))


# Named pipes, devices, loops: nothing waits, nothing recurs


def test_a_named_pipe_or_a_device_as_data(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in (str(tmp_path / "pipe"), "/dev/zero"):
        with pytest.raises(InputError, match="is a named pipe or a device: give a folder or a regular file"):
            source_at(place)
        assert "not a regular file" in refused(Dicom(place))
        assert "not a regular file" in refused(Nifti(place))
        refused(ImageFolder(place))
        refused(Segmented(place))


def test_named_pipes_among_the_files(classes):
    for name in ("a/pipe.png", "a/pipe", "b/1_mask.png"):
        os.mkfifo(classes / name)
    data = source_at(str(classes), size=12).load()
    assert len(data) == 4
    assert set(data.skipped) == {"a/pipe.png: not a regular file", "b/1_mask.png: not a regular file"}


def test_named_pipes_among_dicom_nifti_and_masks(tmp_path):
    dicom(tmp_path / "dcm" / "0.dcm", np.arange(144, dtype=np.uint8).reshape(12, 12), PatientID="p")
    os.mkfifo(tmp_path / "dcm" / "1.dcm")
    os.mkfifo(tmp_path / "dcm" / "IM2")
    assert Dicom(tmp_path / "dcm").load().skipped == ("1.dcm: not a regular file",)
    (tmp_path / "nii").mkdir()
    os.mkfifo(tmp_path / "nii" / "0.nii")
    assert "0.nii: not a regular file" in refused(Nifti(tmp_path / "nii"))
    for i in range(2):
        picture(tmp_path / "seg" / "images" / f"{i}.png", i)
        (tmp_path / "seg" / "masks").mkdir(exist_ok=True)
        os.mkfifo(tmp_path / "seg" / "masks" / f"{i}.png")
    assert "0.png: its mask: not a regular file" in refused(Segmented(tmp_path / "seg"))


def test_links_that_loop_end_and_links_to_folders_are_said(classes):
    (classes / "loop").symlink_to(classes / "loop")
    (classes / "a" / "up").symlink_to(classes, target_is_directory=True)
    data = source_at(str(classes)).load()
    assert len(data) == 4
    assert data.skipped == ("a/up: link to a folder, not followed: give the folder itself",)
    for kind in (ImageFolder, Dicom, Nifti, Segmented):
        refused(kind(classes / "loop"))


# Errors of other libraries without places


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('Cannot work out file type of "/home/jane doe/x.nii"', "Cannot work out file type of the file"),
        ("No such file or no access: '/data/ward 3/x.nii'", "No such file or no access: the file"),
        ("bad /data/x.nii, 3 / 4 and 1/2", "bad the file, 3 / 4 and 1/2"),
        ("unsupported operand type(s) for /: 'a' and 'b'", "unsupported operand type(s) for /: 'a' and 'b'"),
    ],
)
def test_a_reason_holds_no_path(text, expected):
    assert reason(ValueError(text)) == expected


def test_a_reason_holds_no_path_of_the_file_itself(tmp_path):
    odd = tmp_path / "O'Brien, Jane (3)" / "x.nii"
    assert reason(ValueError(f"cannot read {odd}: cut off"), odd) == "cannot read the file: cut off"
    odd.parent.mkdir()
    odd.write_text("no volume")
    message = refused(Nifti(odd.parent))
    assert "Brien" not in message.partition("could be read: ")[2]
