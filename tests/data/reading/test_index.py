"""``index.csv``'s entries for pictures are used, or an error or a note gives the reason."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medpfl.core.errors import InputError
from medpfl.data import Dicom, ImageFolder, Segmented
from medpfl.data.choose import source_at
from tests.data.made_dicom import dicom


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 12), np.uint8)).save(path)
    return path


def write(root: Path, *rows: str) -> Path:
    (root / "index.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


@pytest.fixture
def parts(tmp_path) -> Path:
    for i in range(8):
        picture(tmp_path / f"part_{1 + i // 4}" / f"{i}.png", i)
    return tmp_path


def rows(*more: str) -> list[str]:
    return [f"part_{1 + i // 4}/{i}.png,{('benign', 'malignant')[i % 2]},p{i // 2}" for i in range(8)] + [*more]


def refused(source) -> str:
    with pytest.raises(InputError) as error:
        source.load()
    return str(error.value)


@pytest.mark.parametrize("header", ["file,label,patient_id", "file,class,patient_id", " File ,LABEL, PatientID"])
def test_labels_of_a_table_are_the_classes_of_pictures(parts, header):
    data = source_at(str(write(parts, header, *rows())), size=12).load()
    assert data.classes == ("benign", "malignant")
    assert data.labels.tolist() == [0, 1] * 4
    assert data.patients == tuple(f"p{i // 2}" for i in range(8))
    assert data.notes == ("Classes are the 2 labels in index.csv, not the folders.",)


def test_labels_of_a_table_for_pictures_without_folders(tmp_path):
    for i in range(4):
        picture(tmp_path / f"{i}.png", i)
    data = ImageFolder(write(tmp_path, "label,file", *(f"{'ab'[i % 2]},{i}.png" for i in range(4)))).load()
    assert (data.classes, data.labels.tolist(), data.notes) == (("a", "b"), [0, 1, 0, 1], ())


def test_labels_that_are_the_folders_change_nothing(tmp_path):
    for i in range(4):
        picture(tmp_path / "ab"[i % 2] / f"{i}.png", i)
    before = ImageFolder(tmp_path, limit=3).load()
    after = ImageFolder(
        write(tmp_path, "file,class", *(f"{'ab'[i % 2]}/{i}.png,{'ab'[i % 2]}" for i in range(4))), limit=3
    )
    loaded = after.load()
    assert (loaded.names, loaded.classes, loaded.notes) == (before.names, before.classes, ())
    assert loaded.images.equal(before.images)


def test_pictures_without_a_label_are_an_error(parts):
    message = refused(ImageFolder(write(parts, "file,label,patient_id", *rows()[:6])))
    assert "has no label for 2 file(s):\n  part_2/6.png\n  part_2/7.png\nadd a row for each" in message
    message = refused(ImageFolder(write(parts, "file,label,x", *rows()[:7], "part_2/7.png,nan,p9")))
    assert "has no label for 1 file(s):\n  part_2/7.png" in message
    message = refused(ImageFolder(write(parts, "patient_id,label", "p1,a", "p2,b")))
    assert "gives labels by 'patient_id', which these files do not have: add a column 'file'" in message


def test_an_empty_column_of_labels_gives_none(parts):
    assert ImageFolder(write(parts, "file,label", "part_1/0.png,")).load().classes == ("part_1", "part_2")


def test_a_label_that_is_an_absurd_number_is_a_name(parts):
    data = ImageFolder(write(parts, "file,label,p", *rows()[:7], "part_2/7.png,1000000000000,p")).load()
    assert data.classes == ("1000000000000", "benign", "malignant")


# Patients


@pytest.mark.parametrize("name", ["part_{0}\\{1}.png", ".\\part_{0}\\{1}.png", "part_{0}//{1}.png"])
def test_tables_of_windows_name_the_same_files(parts, name):
    lines = [name.format(1 + i // 4, i) + f",p{i // 2}" for i in range(8)]
    data = ImageFolder(write(parts, "file,patient_id", *lines)).load()
    assert data.patients == tuple(f"p{i // 2}" for i in range(8))
    assert data.notes == ()


def test_names_in_decomposed_and_composed_letters_are_the_same(tmp_path):
    picture(tmp_path / "a" / "Mu\u0308ller.png")  # as macOS writes it
    picture(tmp_path / "b" / "0.png")
    data = ImageFolder(write(tmp_path, "file,patient_id", "a/M\u00fcller.png,p", "b/0.png,q")).load()
    assert data.patients == ("p", "q")


def test_patients_of_no_file_are_an_error(parts):
    message = refused(ImageFolder(write(parts, "file,patient_id", *(f"{i}.png,p{i}" for i in range(8)))))
    assert "gives patients, but none of its 8 rows matches an image:\n  0.png\n" in message
    assert message.endswith(f"give file paths relative to '{parts}', such as 'part_1/0.png'")


def test_rows_without_a_file_and_files_without_a_row_are_said(parts):
    lines = ["part_1/0.png,p0", "part_1/1.png,nan", "gone.png,p1", "gone too.png,p1"]
    data = ImageFolder(write(parts, "file,patient_id", *lines, "", ",")).load()
    assert data.patients == ("p0", *[None] * 7)
    assert data.notes == (
        "2 of the 4 files listed in index.csv are missing",
        "6 of the 8 image files have no row in index.csv: their patients are unknown",
    )


def test_two_patients_of_one_file_are_an_error(parts):
    message = refused(ImageFolder(write(parts, "file,patient_id", "part_1/0.png,a", "part_1\\0.png,b")))
    assert "gives two patients, 'a' and 'b', for" in message


def test_patients_of_dicom_and_of_segmented_images(tmp_path):
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, (12, 12), np.uint8)
        dicom(tmp_path / "dcm" / f"{i}.dcm", pixels, PatientID=f"h{i}")
        picture(tmp_path / "seg" / "images" / f"{i}.png", i)
        Image.fromarray((pixels > 99).astype(np.uint8)).save(picture(tmp_path / "seg" / "masks" / f"{i}.png"))
    data = Dicom(write(tmp_path / "dcm", "file,patient_id", "0.dcm,p", "gone.dcm,p")).load()
    assert data.patients == ("p", "h1", "h2")
    assert data.notes == (
        "1 of the 2 files listed in index.csv are missing",
        "2 of the 3 image files have no row in index.csv: their patients come from the DICOM headers",
    )
    assert "none of its 1 rows matches" in refused(Dicom(write(tmp_path / "dcm", "file,patient_id", "x/0.dcm,p")))
    assert "none of its 1 rows matches" in refused(
        Segmented(write(tmp_path / "seg", "file,patient_id", "images/0.png,p"))
    )
    assert Segmented(write(tmp_path / "seg", "file,patient_id", "0.png,p")).load().patients == ("p", None, None)


def test_a_table_of_labels_by_patient_needs_no_files(tmp_path):
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 255, (12, 12), np.uint8)
        dicom(tmp_path / f"{i}.dcm", pixels, PatientID=f"p{i}")
    data = Dicom(write(tmp_path, "patient_id,label", "p0,sick", "p1,well")).load()
    assert (data.classes, data.labels.tolist(), data.patients) == (("sick", "well"), [0, 1], ("p0", "p1"))


def test_a_table_that_is_no_regular_file_does_not_hang(parts):
    os.mkfifo(parts / "index.csv")
    assert "not a regular file" in refused(ImageFolder(parts))
    (parts / "index.csv").unlink()
    (parts / "index.csv").symlink_to("nowhere")
    assert "a link to nothing" in refused(ImageFolder(parts))
