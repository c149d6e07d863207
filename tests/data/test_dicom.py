"""DICOM folders: the files that are read, their patients, and the notes on other files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.pixels.processing import apply_modality_lut, apply_windowing

from medpfl.core.errors import InputError
from medpfl.data import Dicom, ImageFolder
from medpfl.data.reading import dicom_headers as reading
from medpfl.data.reading.dicom_pixels import dicom_frame, dicom_frames
from tests.data.made_dicom import dicom

FILES = Path(str(get_testdata_file("CT_small.dcm", download=False))).parent
FULL = {"WindowCenter": 128, "WindowWidth": 256}
"""The window that shows 8 bits as stored."""


def noise(seed: int = 0, shape: tuple[int, ...] = (20, 20), dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Create files from three patients; the second has two studies, and files lie in folders named after patients."""
    root = tmp_path / "set"
    for i, (patient, study) in enumerate([("a", "1.1"), ("b", "1.2"), ("b", "1.3"), ("c", "1.4")]):
        tags = {"PatientID": patient, "StudyInstanceUID": study, "SeriesInstanceUID": f"{study}.7", **FULL}
        dicom(root / patient / f"{i}{'.dcm' if i % 2 else ''}", noise(i), **tags)
    return root


def refused(source) -> str:
    with pytest.raises(InputError) as caught:
        source.load()
    return str(caught.value)


def test_images_patients_and_names(folder):
    (folder / "notes.txt").write_text("x")
    data = Dicom(folder, size=20).load()
    assert data.names == ("a/0", "b/1.dcm", "b/2", "c/3.dcm")
    assert data.patients == ("a", "b", "b", "c")
    assert data.skipped == ()
    for i, image in enumerate(data.images):
        np.testing.assert_allclose(image[0], noise(i) / 255, atol=1e-6)
    # Folders that may be named for a patient are no classes, and a loss needs two.
    assert data.classes == ("no label", "other")
    assert data.labels.tolist() == [0] * 4


@pytest.mark.parametrize(
    ("group", "owners"),
    [
        ("study", ("1.1", "1.2", "1.3", "1.4")),
        ("series", ("1.1.7", "1.2.7", "1.3.7", "1.4.7")),
        ("file", ("a/0", "b/1.dcm", "b/2", "c/3.dcm")),
    ],
)
def test_groups(folder, group, owners):
    assert Dicom(folder, group=group).load().patients == owners


def test_the_same_pixels_as_pictures_and_as_dicom_are_the_same_images(tmp_path):
    for i in range(6):
        place = ("benign" if i % 2 else "malignant", f"{i}")
        (tmp_path / "png" / place[0]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(i, (50, 40))).save(tmp_path / "png" / place[0] / f"{i}.png")
        dicom(tmp_path / "dcm" / place[0] / f"{i}.dcm", noise(i, (50, 40)), PatientID=str(i))
    pictures, ours = ImageFolder(tmp_path / "png").load(), Dicom(tmp_path / "dcm").load()
    assert ours.classes == pictures.classes
    assert ours.labels.equal(pictures.labels)
    np.testing.assert_allclose(ours.images, pictures.images, atol=1e-6)


def test_every_frame_is_an_image_of_its_file_s_patient(tmp_path):
    frames = noise(1, (3, 12, 12))
    dicom(tmp_path / "x.dcm", frames, NumberOfFrames=3, PatientID="p", **FULL)
    data = Dicom(tmp_path, size=12).load()
    assert data.names == ("x.dcm#0", "x.dcm#1", "x.dcm#2")
    assert data.patients == ("p",) * 3
    np.testing.assert_allclose(data.images[:, 0], frames / 255, atol=1e-6)


def test_limit_is_even_over_frames(tmp_path):
    dicom(tmp_path / "x.dcm", noise(1, (9, 12, 12)), NumberOfFrames=9, PatientID="p")
    data = Dicom(tmp_path, limit=3).load()
    assert data.names == ("x.dcm#1", "x.dcm#4", "x.dcm#7")
    assert data.left_out == 6


def test_pixels_that_are_not_square_are_made_so(tmp_path):
    pixels = np.zeros((40, 20), np.uint8)
    pixels[10:30, 5:15] = 255  # a square of 20 mm
    dicom(tmp_path / "x.dcm", pixels, PatientID="p", PixelSpacing=[1.0, 2.0], **FULL)
    image = Dicom(tmp_path, size=40).load().images[0, 0]
    assert image.shape == (40, 40)
    inside = image > 0.5
    assert inside.any(0).sum() == inside.any(1).sum() == 20


def test_a_window_for_all_files(folder):
    image = Dicom(folder, size=20, window=(64, 128)).load().images[0, 0]
    np.testing.assert_allclose(image, ((noise(0) - 63.5) / 127 + 0.5).clip(0, 1), atol=1e-6)


def test_one_file(folder):
    assert Dicom(folder / "b" / "2").load().names == ("2",)


# A DICOMDIR


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DICOMDIR", "DICOMDIR-bigEnd", "DICOMDIR-implicit", "DICOMDIR-reordered"])
def test_a_dicomdir_names_the_files_that_its_folder_holds(name):
    named = Dicom(FILES / "dicomdirtests" / name, size=16).load()
    walked = Dicom(FILES / "dicomdirtests", size=16).load()
    assert len(named) == 31
    assert set(named.names) == set(walked.names)
    assert named.images[0].equal(walked.images[walked.names.index(named.names[0])])
    assert set(named.patients) == {"77654033", "98890234"}


def test_files_that_a_dicomdir_names_in_upper_case_and_those_that_are_gone(tmp_path):
    root = shutil.copytree(FILES / "dicomdirtests", tmp_path / "disk")
    (root / "77654033" / "CR1").rename(root / "77654033" / "cr1")
    (root / "77654033" / "CR2" / "6247").unlink()
    data = Dicom(root / "DICOMDIR").load()
    assert "77654033/cr1/6154" in data.names
    assert data.skipped == ("77654033/CR2/6247: listed in the DICOMDIR, but missing",)


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_a_dicomdir_cannot_lead_out_of_its_folder(tmp_path):
    root = shutil.copytree(FILES / "dicomdirtests", tmp_path / "disk")
    header = pydicom.dcmread(root / "DICOMDIR")
    dicom(tmp_path / "SECRET", noise(), PatientID="p")
    for record in header.DirectoryRecordSequence:
        if "ReferencedFileID" in record:
            record.ReferencedFileID = ["..", "SECRET"]
    header.save_as(root / "DICOMDIR")
    assert "it holds no DICOM file" in refused(Dicom(root / "DICOMDIR"))


def test_a_damaged_dicomdir(tmp_path):
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + b"\xff" * 90)
    assert "give its folder instead" in refused(Dicom(tmp_path / "DICOMDIR"))


# What is wrong with a file


def test_without_patient_ids(folder):
    dicom(folder / "x.dcm", noise())
    message = refused(Dicom(folder))
    assert "1 file(s) have no PatientID" in message
    assert "x.dcm" in message
    assert "count each file as one patient: " in message
    assert "group='file'" in message, "this file has no StudyInstanceUID either"
    assert len(Dicom(folder, group="file").load().names) == 5
    (folder / "index.csv").write_text("file,patient_id\nx.dcm,d\na/0,e\n")
    assert Dicom(folder).load().patients == ("e", "b", "b", "c", "d")
    assert "no StudyInstanceUID" in refused(Dicom(folder, group="study"))


def test_what_cannot_be_read_is_skipped_and_said(folder):
    whole = (folder / "b" / "1.dcm").read_bytes()
    (folder / "cut.dcm").write_bytes(whole[:-100])
    (folder / "header.dcm").write_bytes(whole[:200])
    (folder / "empty.dcm").touch()
    (folder / "text.dcm").write_text("not DICOM")
    dicom(folder / "frames.dcm", noise(), PatientID="p", NumberOfFrames=10**9)
    dicom(folder / "huge.dcm", noise(), PatientID="p", Rows=4000)
    for name, tags in {"no_pixels": ["PixelData"], "no_rows": ["Rows"]}.items():
        header = pydicom.dcmread(folder / "a" / "0")
        for tag in tags:
            delattr(header, tag)
        header.save_as(folder / f"{name}.dcm")
    header = pydicom.dcmread(folder / "a" / "0")
    header.file_meta.TransferSyntaxUID = "1.2.3.4.5"
    header.save_as(folder / "odd.dcm", implicit_vr=False, little_endian=True)
    for name in ("rtdose.dcm", "liver_1frame.dcm", "test-SR.dcm", "MR_truncated.dcm"):
        shutil.copy(FILES / name, folder)
    data = Dicom(folder).load()
    assert len(data) == 4
    reasons = dict(line.split(": ", 1) for line in data.skipped)
    damaged = "has fewer or other pixels than its header says: it is truncated or damaged"
    assert reasons.pop("odd.dcm").startswith("has the unsupported transfer syntax 1.2.3.4.5: save it as Explicit VR")
    assert reasons.pop("header.dcm")
    assert reasons == {
        "cut.dcm": damaged,
        "empty.dcm": "empty file",
        "frames.dcm": "damaged header (it says 1000000000 frames)",
        "huge.dcm": damaged,
        "liver_1frame.dcm": "a segmentation, not a picture",
        "MR_truncated.dcm": damaged,
        "no_pixels.dcm": "holds no pixels",
        "no_rows.dcm": "holds no pixels",
        "rtdose.dcm": "a dose, not a picture",
        "test-SR.dcm": "holds no pixels",
        "text.dcm": "has no DICOM header",
    }


@pytest.mark.parametrize(
    ("name", "module", "remedy"),
    [
        ("MR_small_jpeg_ls_lossless.dcm", "jpeg_ls", "pip install 'medpfl[dicom]'"),
        ("GDCMJ2K_TextGBR.dcm", "openjpeg", "pip install 'medpfl[dicom]'"),
        ("SC_rgb_jpeg_gdcm.dcm", "libjpeg", "pip install pylibjpeg pylibjpeg-libjpeg"),
        ("JPEG-lossy.dcm", "libjpeg", "pip install pylibjpeg pylibjpeg-libjpeg"),
    ],
)
def test_a_missing_plug_in_is_named(monkeypatch, name, module, remedy):
    monkeypatch.setattr(reading, "find_spec", lambda wanted: None if wanted == module else object())

    def missing(*_):
        raise RuntimeError("all plugins are missing dependencies")

    monkeypatch.setattr("medpfl.data.dicom.dicom_frames", missing)
    message = refused(Dicom(FILES / name, group="file"))
    assert "which needs a plug-in" in message
    assert message.endswith(remedy)
    monkeypatch.setattr(reading, "find_spec", lambda _: object())
    assert "cannot be decoded" in refused(Dicom(FILES / name, group="file"))


def test_nothing_there(tmp_path):
    assert "there is no file or folder" in refused(Dicom(tmp_path / "none"))
    assert "it holds no DICOM file" in refused(Dicom(tmp_path))
    (tmp_path / "x.dcm").write_text("x")
    assert "x.dcm: has no DICOM header" in refused(Dicom(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group": "patients"}, "did you mean 'patient'"),
        ({"window": (40, 0)}, "a width above 0"),
        ({"window": 40}, "a center and a width"),
        ({"size": 2}, "size=2"),
        ({"limit": 0}, "limit=0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        Dicom("x", **arguments)


# Pydicom's own files

GRAY = [
    "CT_small.dcm",
    "693_J2KI.dcm",
    "J2K_pixelrep_mismatch.dcm",
    "JPEG2000.dcm",
    "MR_small.dcm",
    "MR_small_RLE.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_expb.dcm",
    "MR_small_implicit.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_padded.dcm",
    "examples_overlay.dcm",
    "image_dfl.dcm",
    "dicomdirtests/77654033/CR1/6154",
    "dicomdirtests/77654033/CT2/17106",
    "dicomdirtests/98892003/MR1/4919",
]
COLOR = [
    "ExplVR_BigEnd.dcm",
    "SC_rgb_dcmtk_+eb+cr.dcm",
    "SC_rgb_rle_16bit_2frame.dcm",
    "SC_rgb_rle_2frame.dcm",
    "SC_rgb_rle_32bit.dcm",
    "SC_rgb_small_odd_big_endian.dcm",
    "SC_ybr_full_422_uncompressed.dcm",
    "SC_rgb_jpeg_dcmtk.dcm",
    "examples_rgb_color.dcm",
    "examples_ybr_color.dcm",
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", GRAY)
def test_gray_files_as_pydicom_windows_them(name):
    header = pydicom.dcmread(FILES / name)
    pixels, ours = header.pixel_array, dicom_frame(FILES / name)[0].numpy()
    values = apply_modality_lut(pixels, header)
    inverted = header.PhotometricInterpretation == "MONOCHROME1"
    if "WindowCenter" in header:
        bits = header.BitsStored
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if header.PixelRepresentation else (0, 2**bits - 1)
        slope, intercept = float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))
        low, high = low * slope + intercept, high * slope + intercept
        expected = (apply_windowing(values, header) - low) / (high - low)
        np.testing.assert_allclose(ours, 1 - expected if inverted else expected, atol=1e-5)
    shown = 1 - ours if inverted else ours
    between = (shown > 0) & (shown < 1)
    order = np.argsort(values[between].ravel(), kind="stable")
    assert between.sum() > 20
    assert (np.diff(shown[between].ravel()[order]) >= -1e-6).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", COLOR)
def test_color_files_are_the_rgb_that_pydicom_gives(name):
    header = pydicom.dcmread(FILES / name)
    pixels = pydicom.pixels.pixel_array(FILES / name)
    pixels = pixels if pixels.ndim == 4 else pixels[None]
    for (image, _), frame in zip(dicom_frames(FILES / name, range(len(pixels))), pixels, strict=True):
        np.testing.assert_allclose(image, frame.transpose(2, 0, 1) / (2**header.BitsStored - 1), atol=1e-6)


@pytest.mark.slow
def test_every_file_of_pydicom_is_read_or_explained():
    data = Dicom(FILES, group="file").load()
    known = {str(path.relative_to(FILES)) for path in FILES.rglob("*.dcm")}
    told = {name.partition("#")[0] for name in data.names} | {line.partition(": ")[0] for line in data.skipped}
    assert {name for name in known if "DICOMDIR" not in name} <= told
    assert len(data) > 90
    assert all(len(why) > 5 for _, _, why in (line.partition(": ") for line in data.skipped))
