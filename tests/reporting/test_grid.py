"""Pictures in a grid: every pixel is a square in its own gray or color, every label lies inside."""

import io

import numpy as np
import pytest
from PIL import Image

from medpfl.reporting.figures.grid import draw_grid


def drawn(title, rows, side=64):
    with Image.open(io.BytesIO(draw_grid(title, rows, side))) as image:
        assert image.info == {}
        return np.asarray(image)


def random(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def places_of(picture, sheet):
    found = np.lib.stride_tricks.sliding_window_view(sheet, picture.shape)[..., 0, :, :, :]
    return np.argwhere((found == picture).all((2, 3, 4)))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 3), (7, 5), (64, 48, 3), (80, 80)])
def test_every_pixel_is_a_square_of_its_own_value(shape):
    picture = random(*shape)
    color = picture if picture.ndim == 3 else np.stack([picture] * 3, 2)
    factor = max(1, round(64 / max(shape[:2])))
    large = color.repeat(factor, 0).repeat(factor, 1)
    sheet = drawn("title", [[(picture, "truth"), (255 - picture, "guess")], [(picture, "truth")]])
    places = places_of(large, sheet)
    assert len(places) == 2
    assert len(places_of(255 - large, sheet)) == 1
    assert len(set(places[:, 1])) == 1, "one below the other"


def test_black_stays_black_and_dim_stays_dim():
    dim = np.full((8, 8), 40, dtype=np.uint8)
    assert len(places_of(np.full((64, 64, 3), 40, dtype=np.uint8), drawn("", [[(dim, "")]]))) == 1


WORDS = "attack TopK(keep=0.1) | Sign | QSGD (levels=16): SSIM 0.20, $a_b$ " * 5


@pytest.mark.parametrize(("title", "caption"), [("t", "c"), (WORDS, "c"), ("t", WORDS), (WORDS + "\n" + WORDS, WORDS)])
@pytest.mark.parametrize("columns", [1, 5])
def test_words_are_wrapped_and_none_is_cut_off(title, caption, columns):
    sheet = drawn(title, [[(random(32, 32), caption)] * columns] * 2, 128)
    border = np.concatenate([sheet[:4].ravel(), sheet[-4:].ravel(), sheet[:, :4].ravel(), sheet[:, -4:].ravel()])
    assert (border == 255).all()
    assert sheet.shape[1] == columns * (128 + 16) + 16


def test_lines_of_a_title_stay_lines():
    one, two = (drawn(title, [[(random(8, 8), "c")]]) for title in ("a b", "a\nb"))
    assert two.shape[0] > one.shape[0]


def test_the_same_pictures_give_the_same_bytes():
    rows = [[(random(8, 8), "truth"), (random(8, 8), "guess")]]
    assert draw_grid("title", rows) == draw_grid("title", rows)
