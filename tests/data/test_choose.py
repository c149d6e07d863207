"""A path alone determines its source, or gives an error with the reason."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom.data import get_testdata_file

from medpfl.core.errors import InputError
from medpfl.data import Dicom, ImageFolder, MedMNIST, Nifti
from medpfl.data.choose import source_at

DICOM = Path(str(get_testdata_file("CT_small.dcm", download=False)))
NIFTI = Path(nibabel.__file__).parent / "tests" / "data" / "anatomical.nii"


def put(path: Path, content: Path | bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        shutil.copy(content, path)
    else:
        path.write_bytes(content)
    return path


def test_files(tmp_path):
    assert source_at(str(put(tmp_path / "x.dcm", DICOM)), size=64) == Dicom(tmp_path / "x.dcm", size=64)
    assert isinstance(source_at(str(put(tmp_path / "IM0001", DICOM))), Dicom)
    assert isinstance(source_at(str(put(tmp_path / "DICOMDIR"))), Dicom)
    assert isinstance(source_at(str(put(tmp_path / "x.NII", NIFTI))), Nifti)
    assert isinstance(source_at(str(put(tmp_path / "x.nii.gz"))), Nifti)
    np.savez(tmp_path / "x.npz", train_images=np.zeros((1, 28, 28), "uint8"))
    assert isinstance(source_at(str(tmp_path / "x.npz")), MedMNIST)
    with pytest.raises(InputError, match=r"not an \.npz file .*it may be truncated"):
        source_at(str(put(tmp_path / "cut.npz")))


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["a/1.png", "b/2.jpg", "index.csv"], ImageFolder),
        (["p/s/1.dcm", "p/s/2.IMA", "readme.txt"], Dicom),
        (["sub-01/anat/x.nii.gz", "participants.tsv"], Nifti),
        (["notes.txt"], ImageFolder),  # which says what it needs
        ([], ImageFolder),
    ],
)
def test_folders(tmp_path, names, kind):
    for name in names:
        put(tmp_path / name)
    source = source_at(str(tmp_path), size=16, fit="squash", channels=3)
    assert source == kind(tmp_path, size=16, fit="squash", channels=3)


def test_dicom_files_without_a_suffix(tmp_path):
    put(tmp_path / "p" / "IM1", DICOM)
    put(tmp_path / "p" / "LICENSE", b"text")
    assert isinstance(source_at(str(tmp_path)), Dicom)


def test_files_of_several_kinds_are_not_silently_left_out(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/1.dcm"):
        put(tmp_path / name)
    with pytest.raises(InputError) as caught:
        source_at(str(tmp_path))
    assert "2 for ImageFolder, 1 for Dicom" in str(caught.value)
    assert f"\"Dicom('{tmp_path}')\"" in str(caught.value)


@pytest.mark.parametrize("name", ["x.py", "x.png", "weights.pt"])
def test_a_file_that_no_source_reads(tmp_path, name):
    with pytest.raises(
        InputError, match=r"cannot read the file .*: it is not a recorded update, a DICOM or NIfTI file"
    ):
        source_at(str(put(tmp_path / name, b"x")))


def test_nothing_there_is_said_by_the_source(tmp_path):
    with pytest.raises(InputError, match="cannot open the folder"):
        source_at(str(tmp_path / "none")).load()
