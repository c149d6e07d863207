"""DICOM and NIfTI as a viewer shows them; the windows are computed here by the standard's formula."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from medpfl.data.viewer import dicom_frame
from medpfl.data.volumes import volume


def dicom(path: Path, pixels: np.ndarray, **tags) -> Path:
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = CTImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = "1.2.3"
    header.Rows, header.Columns = pixels.shape[:2]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = pixels.dtype.itemsize * 8
    header.HighBit = header.BitsStored - 1
    header.PixelRepresentation = int(pixels.dtype.kind == "i")
    header.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(header, name, value)
    header.save_as(path, enforce_file_format=True)
    return path


RAMP = np.arange(0, 4096, 4, dtype=np.uint16).reshape(32, 32)


def test_window_after_the_modality_lut(tmp_path):
    tags = {"RescaleSlope": 2, "RescaleIntercept": -1024, "WindowCenter": 400, "WindowWidth": 800}
    ours = dicom_frame(dicom(tmp_path / "x.dcm", RAMP, **tags))[0].numpy()
    expected = ((RAMP * 2.0 - 1024 - 399.5) / 799 + 0.5).clip(0, 1)
    np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("LINEAR", ((RAMP - 1999.5) / 999 + 0.5).clip(0, 1)),
        ("LINEAR_EXACT", ((RAMP - 2000.0) / 1000 + 0.5).clip(0, 1)),
        ("SIGMOID", 1 / (1 + np.exp(-4 * (RAMP - 2000.0) / 1000))),
    ],
)
def test_window_functions_and_the_first_of_several_windows(tmp_path, function, expected):
    tags = {"WindowCenter": [2000, 5], "WindowWidth": [1000, 9], "VOILUTFunction": function}
    np.testing.assert_allclose(dicom_frame(dicom(tmp_path / "x.dcm", RAMP, **tags))[0], expected, atol=1e-6)


def test_a_window_is_not_stretched_to_the_picture(tmp_path):
    path = dicom(tmp_path / "x.dcm", RAMP // 2 + 500, WindowCenter=2048, WindowWidth=4096)
    assert 0.1 < dicom_frame(path).min() < dicom_frame(path).max() < 0.65


def test_a_lookup_table_goes_before_a_window(tmp_path):
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [4096, 0, 12])
    table.add_new("LUTData", "OW", (4095 - np.arange(4096)).astype("<u2").tobytes())
    path = dicom(tmp_path / "x.dcm", RAMP, VOILUTSequence=[table], WindowCenter=1, WindowWidth=1)
    np.testing.assert_allclose(dicom_frame(path)[0], (4095 - RAMP) / 4095, atol=1e-6)


def test_monochrome1_is_inverted(tmp_path):
    tags = {"WindowCenter": 2000, "WindowWidth": 1000}
    positive = dicom_frame(dicom(tmp_path / "2.dcm", RAMP, **tags))
    negative = dicom_frame(dicom(tmp_path / "1.dcm", RAMP, PhotometricInterpretation="MONOCHROME1", **tags))
    np.testing.assert_allclose(negative, 1 - positive, atol=1e-6)
    assert positive[0, 0, 0] == 0


def test_without_a_window_percentiles(tmp_path):
    pixels = RAMP.copy()
    pixels[0, 0] = 60000  # one hot pixel would make all others black
    ours = dicom_frame(dicom(tmp_path / "x.dcm", pixels))[0].numpy()
    low, high = np.percentile(pixels, (1, 99))
    np.testing.assert_allclose(ours, ((pixels - low) / (high - low)).clip(0, 1), atol=1e-6)


def test_color(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    tags = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    ours = dicom_frame(dicom(tmp_path / "x.dcm", pixels, **tags)).numpy()
    np.testing.assert_allclose(ours, pixels.transpose(2, 0, 1) / 255, atol=1e-6)


@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_image_is_black(tmp_path, value):
    assert dicom_frame(dicom(tmp_path / "x.dcm", np.full((8, 8), value, np.uint16))).max() == 0


def test_volume_is_turned_to_right_anterior_superior(tmp_path):
    values = np.random.default_rng(0).random((5, 6, 7, 2)).astype(np.float32)
    turned = np.diag([-2.0, -2.0, 2.0, 1.0])  # left, posterior, superior
    nibabel.save(nibabel.Nifti1Image(values, turned), tmp_path / "x.nii.gz")
    first = values[::-1, ::-1, :, 0]
    low, high = np.percentile(first, (1, 99))
    np.testing.assert_allclose(volume(tmp_path / "x.nii.gz"), ((first - low) / (high - low)).clip(0, 1), atol=1e-5)
