"""DICOM files as archives, scanners and planning systems write them: odd names, headers and values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRBigEndian

from medpfl.core.errors import InputError
from medpfl.data import Dicom
from medpfl.data.choose import source_at
from medpfl.data.reading.dicom_pixels import dicom_frame
from tests.data.made_dicom import dicom

RAMP = np.arange(0, 4096, 4, dtype=np.uint16).reshape(32, 32)
UID = "1.2.826.0.1.3680043.8.498."


def refused(source) -> str:
    with pytest.raises(InputError) as error:
        source.load()
    return str(error.value)


@pytest.mark.parametrize("name", ["CT.{uid}{i}", "{uid}{i}", "IM{i}", "{i}.x", "a.b/{uid}{i}"])
def test_files_named_by_uid_are_found_among_texts(tmp_path, name):
    for i in range(3):
        dicom(tmp_path / "series" / name.format(uid=UID, i=i), RAMP, PatientID=f"P{i}")
    for i in range(300):
        (tmp_path / "series" / f"0{i}.txt").write_text("x")
    source = source_at(str(tmp_path), size=32)
    assert isinstance(source, Dicom)
    assert source.load().patients == ("P0", "P1", "P2")


def bare(path: Path, implicit: bool, little: bool) -> Path:
    dicom(path, RAMP, PatientID="P", WindowCenter=2000, WindowWidth=1000)
    header = pydicom.dcmread(path)
    if not little:
        header.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        header.PixelData = RAMP.astype(">u2").tobytes()
    del header.file_meta
    header.preamble = None
    pydicom.dcmwrite(path, header, implicit_vr=implicit, little_endian=little, enforce_file_format=False)
    assert path.read_bytes()[128:132] != b"DICM"
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["x.dcm", "IM0", f"CT.{UID}7"])
@pytest.mark.parametrize(("implicit", "little"), [(True, True), (False, True), (False, False)])
def test_files_without_preamble_are_read(tmp_path, name, implicit, little):
    whole = dicom(tmp_path / "whole.dcm", RAMP, WindowCenter=2000, WindowWidth=1000)
    path = bare(tmp_path / "set" / name, implicit, little)
    data = source_at(str(path.parent), size=32).load()
    assert (data.names, data.patients) == ((name,), ("P",))
    assert data.images[0].equal(dicom_frame(whole))
    assert source_at(str(path), size=32).load().images.equal(data.images)


@pytest.mark.filterwarnings("ignore")
def test_a_cut_file_without_preamble_and_one_that_only_starts_so(tmp_path):
    path = bare(tmp_path / "x.dcm", True, True)
    path.write_bytes(path.read_bytes()[:-100])
    assert "x.dcm: has fewer or other pixels than its header says" in refused(Dicom(tmp_path))
    path.write_bytes(b"\x08\x00" + b"x" * 300)
    assert "x.dcm: has no DICOM header" in refused(Dicom(tmp_path))


# Numbers of a header


def patched(path: Path, **texts: str) -> Path:
    """Return the file with texts instead of numbers in some tags, which pydicom would not write."""
    header = pydicom.dcmread(path)
    tags = {name: pydicom.datadict.tag_for_keyword(name) for name in texts}
    for name, text in texts.items():
        header.add_new(tags[name], "LO", text)
    header.save_as(path)
    content = path.read_bytes()
    for tag in tags.values():
        raw = tag.to_bytes(4, "big")
        raw = raw[1::-1] + raw[:1:-1]
        assert raw + b"LO" in content
        content = content.replace(raw + b"LO", raw + b"DS")
    path.write_bytes(content)
    return path


def test_a_decimal_comma_is_a_point(tmp_path):
    point = dicom(tmp_path / "point.dcm", RAMP, WindowCenter=2048.5, WindowWidth=1000.5, RescaleSlope=2)
    comma = dicom(tmp_path / "comma.dcm", RAMP)
    patched(comma, WindowCenter="2048,5", WindowWidth="1000,5", RescaleSlope="2,0")
    assert dicom_frame(comma).equal(dicom_frame(point))
    wide = patched(dicom(tmp_path / "wide.dcm", RAMP), PixelSpacing="0,5\\0,25")
    assert Dicom(wide, group="file").load().images.shape == (1, 1, 32, 32)


@pytest.mark.parametrize("name", ["WindowCenter", "RescaleSlope", "RescaleIntercept", "PixelSpacing"])
@pytest.mark.parametrize(("text", "why"), [("wide", "is not a number"), ("nan", "is not a finite number")])
def test_a_tag_that_is_no_number_is_named(tmp_path, name, text, why):
    path = patched(dicom(tmp_path / "x.dcm", RAMP), **{name: text})
    assert refused(Dicom(path, group="file")).endswith(f"x.dcm: its {name} {why}")


@pytest.mark.parametrize("tags", [{"RescaleSlope": None, "RescaleIntercept": None}, {"WindowCenter": None}])
def test_an_empty_tag_is_as_a_missing_one(tmp_path, tags):
    plain = dicom_frame(dicom(tmp_path / "plain.dcm", RAMP))
    assert dicom_frame(dicom(tmp_path / "empty.dcm", RAMP, **tags)).equal(plain)


def test_a_slope_or_an_intercept_alone(tmp_path):
    window = {"WindowCenter": 1000, "WindowWidth": 1000}
    both = dicom_frame(dicom(tmp_path / "a.dcm", RAMP, RescaleSlope=1, RescaleIntercept=-500, **window))
    alone = dicom_frame(dicom(tmp_path / "b.dcm", RAMP, RescaleSlope=None, RescaleIntercept=-500, **window))
    assert alone.equal(both)
    assert refused(Dicom(dicom(tmp_path / "c.dcm", RAMP, RescaleSlope=0), group="file")).endswith("RescaleSlope is 0")


def float_map(path: Path, values: np.ndarray, **tags) -> Path:
    dicom(path, RAMP, PatientID="p")
    header = pydicom.dcmread(path)
    for tag in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(header, tag)
    double = values.dtype == np.float64
    header.BitsAllocated = 64 if double else 32
    setattr(header, "DoubleFloatPixelData" if double else "FloatPixelData", values.tobytes())
    header["DoubleFloatPixelData" if double else "FloatPixelData"].VR = "OD" if double else "OF"
    for name, value in tags.items():
        setattr(header, name, value)
    header.save_as(path)
    return path


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_a_parametric_map_is_shown_by_its_percentiles_or_its_window(tmp_path, dtype):
    values = (RAMP / 4095 * 0.003).astype(dtype)
    shown = Dicom(float_map(tmp_path / "x.dcm", values), size=32).load().images[0, 0].numpy()
    low, high = np.percentile(values, (1, 99))
    np.testing.assert_allclose(shown, ((values - low) / (high - low)).clip(0, 1), atol=1e-5)
    narrow = float_map(tmp_path / "y.dcm", values, WindowCenter="0.0015", WindowWidth="0.002")
    expected = ((values - 0.0015) / 0.002 + 0.5).clip(0, 1)
    np.testing.assert_allclose(dicom_frame(narrow)[0], expected, atol=1e-5)
    values = values.copy()
    values[0, 0] = np.nan
    assert "holds pixels that are not finite (NaN)" in refused(Dicom(float_map(tmp_path / "z.dcm", values)))


def test_what_is_not_the_pixels_fault_is_not_blamed_on_them(tmp_path, monkeypatch):
    def odd(*_):
        raise ValueError("something else")

    monkeypatch.setattr("medpfl.data.dicom.dicom_frames", odd)
    message = refused(Dicom(dicom(tmp_path / "x.dcm", RAMP), group="file"))
    assert message.endswith("x.dcm: cannot be shown (something else)")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tags", "why"),
    [
        ({"Rows": 65535, "Columns": 65535}, "damaged header (it says 65535 x 65535 pixels)"),
        ({"NumberOfFrames": 10**9}, "damaged header (it says 1000000000 frames)"),
        ({"NumberOfFrames": 99_999}, "has fewer or other pixels than its header says"),
        ({"Rows": 0}, "holds no pixels"),
    ],
)
def test_absurd_sizes(tmp_path, tags, why):
    assert why in refused(Dicom(dicom(tmp_path / "x.dcm", RAMP, **tags), group="file"))


# Padding


@pytest.mark.parametrize(("vr", "value"), [("SS", -2000), ("US", 63536)])
def test_padding_is_of_the_type_of_the_pixels(tmp_path, vr, value):
    pixels = RAMP.astype(np.int16) - 900
    pixels[:8] = -2000
    path = dicom(tmp_path / "x.dcm", pixels)
    header = pydicom.dcmread(path)
    header.add_new("PixelPaddingValue", vr, value)
    header.save_as(path)
    low, high = np.percentile(pixels[8:], (1, 99))
    np.testing.assert_allclose(dicom_frame(path)[0, 8:], ((pixels[8:] - low) / (high - low)).clip(0, 1), atol=1e-6)


@pytest.mark.parametrize("ends", [(-2000, -1500), (-1500, -2000)])
def test_a_range_of_padding(tmp_path, ends):
    pixels = RAMP.astype(np.int16) - 900
    pixels[:4], pixels[4:8] = -2000, -1600
    path = dicom(tmp_path / "x.dcm", pixels)
    header = pydicom.dcmread(path)
    header.add_new("PixelPaddingValue", "SS", ends[0])
    header.add_new("PixelPaddingRangeLimit", "SS", ends[1])
    header.save_as(path)
    low, high = np.percentile(pixels[8:], (1, 99))
    np.testing.assert_allclose(dicom_frame(path)[0, 8:], ((pixels[8:] - low) / (high - low)).clip(0, 1), atol=1e-6)
