"""Every mode and depth of PNG, JPEG, BMP and TIFF; the pixels come from arrays made here, not from Pillow."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from medpfl.data.reading.decode import decode, pillow_quiet, reason

RNG = np.random.default_rng(0)
GRAY8 = RNG.integers(0, 256, (12, 17), dtype=np.uint8)
GRAY16 = RNG.integers(0, 60000, (12, 17), dtype=np.uint16)  # the brightest is not white
RGB8 = RNG.integers(0, 256, (12, 17, 3), dtype=np.uint8)


def saved(path: Path, image: Image.Image | np.ndarray, **options) -> Path:
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def read(path: Path) -> np.ndarray:
    with pillow_quiet():
        tensor = decode(path)
    assert tensor.dtype == torch.float32
    assert 0 <= tensor.min() <= tensor.max() <= 1
    return tensor.numpy()


def close(ours: np.ndarray, expected: np.ndarray, tolerance: float = 1e-6) -> bool:
    return ours.shape == expected.shape and bool(abs(ours - expected).max() <= tolerance)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".TIFF"])
def test_eight_bit_gray_and_color(tmp_path, suffix):
    assert close(read(saved(tmp_path / f"gray{suffix}", GRAY8)), GRAY8[None] / 255)
    assert close(read(saved(tmp_path / f"color{suffix}", RGB8)), RGB8.transpose(2, 0, 1) / 255)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_is_what_it_was_within_its_losses(tmp_path, mode):
    smooth = np.linspace(0, 255, 32 * 32).reshape(32, 32).astype(np.uint8)
    ours = read(saved(tmp_path / "x.jpg", Image.fromarray(smooth).convert(mode), quality=100, subsampling=0))
    assert len(ours) == (1 if mode == "L" else 3)
    assert abs(ours - smooth / 255).max() < 0.03


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bit_is_divided_by_65535(tmp_path, suffix, order):
    image = Image.frombytes("I;16" if order == "<u2" else "I;16B", (17, 12), GRAY16.astype(order).tobytes())
    assert close(read(saved(tmp_path / f"x{suffix}", image)), GRAY16[None] / 65535)


def test_sixteen_bit_png_written_without_pillow(tmp_path):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in GRAY16)
    header = struct.pack(">IIBBBBB", 17, 12, 16, 0, 0, 0, 0)
    path = tmp_path / "x.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    assert close(read(path), GRAY16[None] / 65535)


def tiff(pixels: bytes, bits: int, photometric: int, shape: tuple[int, int]) -> bytes:
    """Return a little-endian TIFF with one strip."""
    height, width = shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 0), (277, 1)]
    tags += [(278, height), (279, len(pixels))]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, start if tag == 273 else value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0\0\0\0" + pixels


def test_a_negative_sixteen_bit_tiff_is_shown_positive(tmp_path):
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(GRAY16.tobytes(), 16, 0, GRAY16.shape))
    assert close(read(path), 1 - GRAY16[None] / 65535)


def test_twelve_bit_tiff_is_divided_by_4095(tmp_path):
    values = np.array([[0, 4095], [1, 2048]])
    packed = b"".join(struct.pack(">I", (a << 12) | b)[1:] for a, b in values)
    (tmp_path / "x.tif").write_bytes(tiff(packed, 12, 1, (2, 2)))
    assert close(read(tmp_path / "x.tif"), values[None] / 4095)


def test_integers_and_floats_in_32_bits(tmp_path):
    assert close(read(saved(tmp_path / "i.tif", GRAY16.astype(np.int32))), GRAY16[None] / 65535)
    assert close(read(saved(tmp_path / "f.tif", (GRAY8 / 255).astype(np.float32))), GRAY8[None] / 255)


@pytest.mark.parametrize(
    "values",
    [np.int32([[-1, 5]]), np.int32([[70000, 5]]), np.float32([[0, 255]]), np.float32([[np.nan, 0]])],
    ids=["negative", "large", "float-255", "nan"],
)
def test_what_white_means_is_not_guessed(tmp_path, values):
    with pytest.raises(ValueError, match="its values are not in 0 to"):
        read(saved(tmp_path / "x.tif", values))


def test_one_bit(tmp_path):
    bits = GRAY8 > 128
    assert close(read(saved(tmp_path / "x.png", Image.fromarray(bits))), bits[None].astype(float))


def test_transparent_parts_become_black(tmp_path):
    alpha = RNG.integers(0, 256, GRAY8.shape, dtype=np.uint8)
    color, gray = np.dstack([RGB8, alpha]), np.dstack([GRAY8, alpha])
    expected = RGB8.transpose(2, 0, 1) / 255 * (alpha / 255)
    assert close(read(saved(tmp_path / "rgba.png", color)), expected)
    assert close(read(saved(tmp_path / "la.png", Image.fromarray(gray, "LA"))), GRAY8[None] / 255 * (alpha / 255))
    assert close(read(saved(tmp_path / "rgba.tif", color)), expected)


def test_palette_with_and_without_transparency(tmp_path):
    indices = GRAY8 % 4
    image = Image.fromarray(indices, "P")
    colors = np.array([[255, 0, 0], [0, 255, 0], [9, 8, 7], [255, 255, 255]], dtype=np.uint8)
    image.putpalette(colors.tobytes())
    expected = colors[indices].transpose(2, 0, 1) / 255
    assert close(read(saved(tmp_path / "p.png", image)), expected)
    assert close(read(saved(tmp_path / "p.bmp", image)), expected)
    shown = np.array([1, 0, 1, 0.2])[indices]
    path = saved(tmp_path / "bytes.png", image, transparency=bytes([255, 0, 255, 51]))
    assert close(read(path), expected * shown)
    path = saved(tmp_path / "single.png", image, transparency=1)
    assert close(read(path), expected * (indices != 1))


@pytest.mark.parametrize("mode", ["L", "RGB", "1"])
def test_a_transparent_color_becomes_black(tmp_path, mode):
    image = Image.fromarray(np.array([[255, 0], [255, 255]], dtype=np.uint8)).convert(mode)
    white = (255, 255, 255) if mode == "RGB" else 255
    assert read(saved(tmp_path / "x.png", image, transparency=white)).max() == 0


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_orientation_is_obeyed(tmp_path, suffix):
    picture = np.zeros((16, 32), dtype=np.uint8)
    picture[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees to see it upright
    ours = read(saved(tmp_path / f"x{suffix}", picture, exif=exif))[0]
    assert ours.shape == (32, 16)
    assert ours[:14].min() > 0.9
    assert ours[18:].max() < 0.1


def test_of_several_pages_the_first(tmp_path):
    pages = [Image.fromarray(np.full((9, 9), value, np.uint8)) for value in (51, 255)]
    assert read(saved(tmp_path / "x.tif", pages[0], save_all=True, append_images=pages[1:])).max() == np.float32(0.2)


def why(path: Path) -> str:
    with pillow_quiet(), pytest.raises(Exception) as caught:  # noqa: PT011
        decode(path)
    return reason(caught.value)


def test_reasons(tmp_path, monkeypatch):
    good = saved(tmp_path / "good.png", RGB8).read_bytes()
    for name, content, expected in [
        ("empty.png", b"", "empty file"),
        ("text.jpg", b"hello", "not an image"),
        ("cut.png", good[: len(good) // 2], "truncated"),
        ("gif.png", b"GIF89a" + bytes(20), "not an image"),
        ("flat.png", good[:16] + bytes(4) + good[20:], ""),
    ]:
        (tmp_path / name).write_bytes(content)
        assert expected in why(tmp_path / name)
        assert str(tmp_path) not in why(tmp_path / name)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    assert why(tmp_path / "gone.png") == "a link to nothing"
    os.mkfifo(tmp_path / "pipe.png")
    assert why(tmp_path / "pipe.png") == "not a regular file"
    for most in (150, 60):  # 204 pixels: Pillow warns of the first and refuses the second
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        assert why(tmp_path / "good.png") == f"more than {most} pixels"


def test_an_unreadable_file_has_its_reason_without_its_path():
    assert reason(PermissionError(13, "Permission denied", "/secret/x.png")) == "Permission denied"
    assert reason(EOFError()) == "EOFError"


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from(["png", "jpg", "bmp", "tif"]), st.data())
def test_damaged_files_are_read_in_range_or_refused(tmp_path, suffix, data):
    whole = bytearray(saved(tmp_path / f"whole.{suffix}", RGB8).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / f"damaged.{suffix}"
    path.write_bytes(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    text = _reason_or_none(path)
    assert text is None or ("\n" not in text and 0 < len(text) <= 100)


def _reason_or_none(path: Path) -> str | None:
    try:
        with pillow_quiet():
            tensor = decode(path)
    except Exception as error:
        return reason(error)
    assert 0 <= tensor.min() <= tensor.max() <= 1
    return None
