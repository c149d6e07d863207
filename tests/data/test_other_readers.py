"""Pydicom's own files, frame by frame, as pydicom, MONAI and SimpleITK read them."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from medpfl.data.reading.dicom_pixels import dicom_frames

FILES = Path(str(get_testdata_file("CT_small.dcm", download=False))).parent
GRAY = [
    "693_J2KI.dcm", "CT_small.dcm", "J2K_pixelrep_mismatch.dcm", "JPEG2000.dcm", "MR_small.dcm", "MR_small_RLE.dcm",
    "MR_small_bigendian.dcm", "MR_small_expb.dcm", "MR_small_implicit.dcm", "MR_small_jp2klossless.dcm",
    "MR_small_padded.dcm", "examples_overlay.dcm", "image_dfl.dcm", "dicomdirtests/77654033/CR1/6154",
    "dicomdirtests/77654033/CR2/6247", "dicomdirtests/77654033/CT2/17106", "dicomdirtests/98892003/MR1/4919",
]  # fmt: skip
COLOR = [
    "ExplVR_BigEnd.dcm", "SC_jpeg_no_color_transform.dcm", "SC_rgb_dcmtk_+eb+cr.dcm", "SC_rgb_dcmtk_+eb+cy+np.dcm",
    "SC_rgb_dcmtk_+eb+cy+s4.dcm", "SC_rgb_gdcm_KY.dcm", "SC_rgb_jpeg_dcmd.dcm", "SC_rgb_rle.dcm",
    "SC_rgb_rle_2frame.dcm", "SC_rgb_rle_16bit.dcm", "SC_rgb_rle_16bit_2frame.dcm", "SC_rgb_rle_32bit_2frame.dcm",
    "SC_rgb_small_odd.dcm",
    "SC_rgb_small_odd_big_endian.dcm", "SC_ybr_full_422_uncompressed.dcm", "examples_jpeg2k.dcm",
    "examples_palette.dcm", "examples_rgb_color.dcm", "examples_ybr_color.dcm",
]  # fmt: skip
DECODED = {
    "gray": ["JPEGLSNearLossless_08.dcm", "JPEGLSNearLossless_16.dcm", "MR_small_jpeg_ls_lossless.dcm"],
    "color": ["GDCMJ2K_TextGBR.dcm"],
}
"""Files that need a decoder of the extra `dicom`."""
UNLIKE = {
    "MONAI": ("examples_palette",),  # gives the palette's indices, no colors
    "SimpleITK": ("16bit", "32bit"),  # 2.5.7 shuffles the bytes of colors of more than 8 bits under RLE
}
"""Parts of the names of color files that a reader does not read."""


def by_pydicom(path: Path) -> np.ndarray:
    header = pydicom.dcmread(path)
    if header.PhotometricInterpretation == "PALETTE COLOR":
        return pydicom.pixels.apply_color_lut(header.pixel_array, header) / 257  # of 16 bits
    return pydicom.pixels.apply_modality_lut(header.pixel_array, header)


def by_monai(path: Path) -> np.ndarray:
    from monai import transforms

    return np.asarray(transforms.LoadImage(reader="PydicomReader", swap_ij=False, image_only=True)(str(path)))


def by_simpleitk(path: Path) -> np.ndarray:
    import SimpleITK as itk

    itk.ProcessObject.SetGlobalWarningDisplay(False)
    found = itk.GetArrayFromImage(itk.ReadImage(str(path))).astype(float)
    header = pydicom.dcmread(path)
    if header.PhotometricInterpretation != "MONOCHROME1":
        return found
    # It has inverted the stored numbers itself, before the rescaling.
    most = (2**header.BitsStored - 1) * float(header.RescaleSlope) + 2 * float(header.RescaleIntercept)
    return most - found


READERS = {"pydicom": by_pydicom, "MONAI": by_monai, "SimpleITK": by_simpleitk}


def pairs(names: list[str], decoded: list[str]) -> list:
    """Return each file with each reader that reads it; readers and decoders other than pydicom's are extras."""
    return [pytest.param(name, "pydicom", id=name, marks=pytest.mark.extra) for name in decoded] + [
        pytest.param(name, reader, id=f"{name}-{reader}", marks=[pytest.mark.extra] if reader in UNLIKE else [])
        for name in names
        for reader in READERS
        if not any(part in name for part in UNLIKE.get(reader, ()))
    ]


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "reader"), pairs(GRAY, DECODED["gray"]))
def test_gray(name, reader):
    """Under a window from the smallest to the largest value, a gray image equals its values."""
    values = np.squeeze(READERS[reader](FILES / name)).astype(float)
    low, high = values.min(), values.max()
    assert high > low
    expected = (values - low) / (high - low)
    if pydicom.dcmread(FILES / name).PhotometricInterpretation == "MONOCHROME1":
        expected = 1 - expected
    ((image, _),) = dicom_frames(FILES / name, [0], ((low + high) / 2 + 0.5, high - low + 1))
    np.testing.assert_allclose(image[0], expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "reader"), pairs(COLOR, DECODED["color"]))
def test_color(name, reader):
    header = pydicom.dcmread(FILES / name)
    frames = int(header.get("NumberOfFrames") or 1)
    values = READERS[reader](FILES / name).astype(float).reshape(frames, header.Rows, header.Columns, 3)
    shown = dicom_frames(FILES / name, range(frames))
    steps = 1.01 / 255 if name == "examples_palette.dcm" and reader == "SimpleITK" else 1e-6  # it rounds to 8 bits
    for (image, _), frame in zip(shown, values, strict=True):
        np.testing.assert_allclose(image.movedim(0, -1), frame / (2**header.BitsStored - 1), atol=steps)
