"""DICOM and NIfTI as a viewer shows them; the tests compute the windows by the standard's formula."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from pydicom.dataset import Dataset

from medpfl.data.reading.dicom_pixels import between_percentiles, dicom_frame, dicom_frames
from medpfl.data.reading.volumes import volume
from tests.data.made_dicom import dicom

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


# What an enhanced multi-frame file, a palette, and pixels of other shapes ask for


def sequence(**tags):
    item = Dataset()
    for name, value in tags.items():
        setattr(item, name, value)
    return [item]


def test_each_frame_of_an_enhanced_file_has_its_own_window_and_rescaling(tmp_path):
    frames = np.stack([RAMP, RAMP, RAMP])
    own = []
    for intercept, center in ((0, 1000), (-500, 1000), (0, 2000)):
        group = Dataset()
        group.PixelValueTransformationSequence = sequence(RescaleSlope=1, RescaleIntercept=intercept)
        group.FrameVOILUTSequence = sequence(WindowCenter=center, WindowWidth=1000)
        own.append(group)
    shared = sequence(PixelMeasuresSequence=sequence(PixelSpacing=[0.5, 2.0]))
    tags = {"SharedFunctionalGroupsSequence": shared, "PerFrameFunctionalGroupsSequence": own, "WindowCenter": 7}
    shown = dicom_frames(dicom(tmp_path / "x.dcm", frames, NumberOfFrames=3, WindowWidth=3, **tags), [2, 0, 1])
    for (image, spacing), (intercept, center) in zip(shown, ((0, 2000), (0, 1000), (-500, 1000)), strict=True):
        expected = ((RAMP.astype(float) + intercept - (center - 0.5)) / 999 + 0.5).clip(0, 1)
        np.testing.assert_allclose(image[0], expected, atol=1e-6)
        assert spacing == (0.5, 2.0)


def test_a_palette_gives_colors(tmp_path):
    pixels = np.arange(4, dtype=np.uint8).reshape(2, 2)
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, values in (("Red", [0, 65535, 0, 32768]), ("Green", [0, 0, 65535, 0]), ("Blue", [0, 0, 0, 65535])):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [4, 0, 16]
        tags[f"{name}PaletteColorLookupTableData"] = np.array(values, "<u2").tobytes()
    ours = dicom_frame(dicom(tmp_path / "x.dcm", pixels, **tags))
    assert ours.shape == (3, 2, 2)
    np.testing.assert_allclose(ours[:, 1, 1], [32768 / 65535, 0, 1], atol=1e-6)
    np.testing.assert_allclose(ours[:, 0, 1], [1, 0, 0], atol=1e-6)


@pytest.mark.parametrize(("bits", "dtype"), [(8, np.uint8), (7, np.uint8), (1, np.uint8)])
def test_few_bits_without_a_window_are_shown_as_stored(tmp_path, bits, dtype):
    pixels = np.random.default_rng(0).integers(0, 2**bits, (16, 16)).astype(dtype)
    path = dicom(tmp_path / "x.dcm", pixels, BitsStored=bits, HighBit=bits - 1)
    np.testing.assert_allclose(dicom_frame(path)[0], pixels / (2**bits - 1), atol=1e-7)


def test_signed_pixels(tmp_path):
    pixels = np.arange(-512, 512, dtype=np.int16).reshape(32, 32)
    ours = dicom_frame(dicom(tmp_path / "x.dcm", pixels, WindowCenter=0, WindowWidth=1024))
    np.testing.assert_allclose(ours[0], (pixels + 512) / 1023, atol=1e-6)


def test_sixteen_bits_keep_their_precision(tmp_path):
    pixels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    ours = dicom_frame(dicom(tmp_path / "x.dcm", pixels, WindowCenter=32768, WindowWidth=65536))
    assert len(ours.unique()) == 65536
    np.testing.assert_allclose(ours[0], pixels / 65535, atol=1e-7)


def test_padding_does_not_decide_what_is_black(tmp_path):
    pixels = RAMP.copy().astype(np.int16)
    pixels[:8] = -30000
    ours = dicom_frame(dicom(tmp_path / "x.dcm", pixels, PixelPaddingValue=-30000))[0].numpy()
    low, high = np.percentile(pixels[8:], (1, 99))
    np.testing.assert_allclose(ours[8:], ((pixels[8:] - low) / (high - low)).clip(0, 1), atol=1e-6)
    assert ours[:8].max() == 0


def test_a_window_given_goes_before_the_file_s(tmp_path):
    path = dicom(tmp_path / "x.dcm", RAMP, WindowCenter=1, WindowWidth=1)
    ((image, _),) = dicom_frames(path, [0], (2000, 1000))
    np.testing.assert_allclose(image[0], ((RAMP - 1999.5) / 999 + 0.5).clip(0, 1), atol=1e-6)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"PixelSpacing": [0.5, 0.25]}, (0.5, 0.25)),
        ({"ImagerPixelSpacing": [0.1, 0.2]}, (0.1, 0.2)),
        ({"PixelAspectRatio": [4, 3]}, (4, 3)),
        ({"PixelSpacing": [0, 1]}, (1, 1)),
        ({}, (1, 1)),
    ],
)
def test_spacing(tmp_path, tags, expected):
    assert dicom_frames(dicom(tmp_path / "x.dcm", RAMP, **tags), [0])[0].spacing == expected


# Values that are tiny, rare or all alike


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1, 1e9, 1e30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_magnitude_of_values_decides_nothing(scale, dtype):
    values = np.random.default_rng(0).random((8, 8, 8))
    ours = between_percentiles((values * scale).astype(dtype))
    np.testing.assert_allclose(ours, between_percentiles(values), atol=1e-5)
    offset = between_percentiles(1000 + values * 1e-6)
    np.testing.assert_allclose(offset, between_percentiles(values), atol=1e-5)


@pytest.mark.parametrize("share", [0.002, 0.007, 0.012, 0.03])
@pytest.mark.parametrize("background", [0.0, -1024.0])
def test_rare_values_keep_their_gray_levels(share, background):
    values = np.full(10_000, background)
    count = int(share * len(values))
    values[:count] = background + np.linspace(1, 2, count)
    ours = between_percentiles(values)
    assert ours[count:].max() == 0
    assert 0.4 < ours[:count].min() < ours[:count].max() == 1
    assert len(np.unique(ours[:count])) > 0.9 * count


def test_a_volume_of_two_values_is_black_and_white():
    values = np.zeros(10_000)
    values[:3] = 7
    assert set(between_percentiles(values).tolist()) == {0, 1}
    assert between_percentiles(np.full(9, 7.0)).max() == 0


def test_many_values_are_between_their_percentiles_as_before():
    values = np.random.default_rng(0).normal(size=10_000)
    values[: len(values) // 2] = values.min()  # a background
    low, high = np.percentile(values, (1, 99))
    np.testing.assert_allclose(between_percentiles(values), ((values - low) / (high - low)).clip(0, 1), atol=1e-6)


def test_a_window_below_1_is_not_a_threshold(tmp_path):
    tags = {"RescaleSlope": 1e-5, "RescaleIntercept": 0, "WindowCenter": 0.02, "WindowWidth": 0.04}
    ours = dicom_frame(dicom(tmp_path / "x.dcm", RAMP, **tags))[0].numpy()
    np.testing.assert_allclose(ours, ((RAMP * 1e-5 - 0.02) / 0.04 + 0.5).clip(0, 1), atol=1e-5)
    tags = {"WindowCenter": 2000, "WindowWidth": 1}
    assert set(dicom_frame(dicom(tmp_path / "y.dcm", RAMP, **tags)).unique().tolist()) == {0, 1}
