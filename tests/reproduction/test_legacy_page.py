"""The notebooks' calls, one by one: their numbers equal scikit-image's and torchvision's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity
from torchvision.transforms import ToPILImage

from medpfl.reproduction.legacy import CALLS, eight_bit, examples, uniform_window, write_legacy

TRUTH, GUESSES = examples()
GAUSS = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


def skimage(guess, truth, **options):
    arrays = [image[0, 0].double().numpy() for image in (guess, truth)]
    return structural_similarity(*arrays, **options)


@pytest.mark.parametrize("name", GUESSES)
def test_calls_are_scikit_images(name):
    guess = GUESSES[name]
    clamped = guess.clamp(0, 1)
    found = {call: float(score(guess, TRUTH)) for call, score in CALLS.items()}
    assert found["SSIM"] == pytest.approx(skimage(clamped, TRUTH, data_range=1, **GAUSS), abs=1e-6)
    assert found["default window"] == pytest.approx(skimage(clamped, TRUTH, data_range=1), abs=1e-6)
    normalized = [(image - 0.4914) / 0.2023 for image in (guess, TRUTH)]
    by_255 = skimage(*normalized, data_range=255, **GAUSS)
    assert found["data range 255, normalized pixels"] == pytest.approx(by_255, abs=1e-6)
    bytes_ = [torch.tensor(np.array(ToPILImage()(image[0])))[None, None] for image in (guess, TRUTH)]
    assert found["after 8-bit conversion"] == pytest.approx(skimage(*bytes_, data_range=255, **GAUSS), abs=1e-6)
    if name != "flat gray, its mean":  # there, scikit-image divides by zero
        by_0 = skimage(guess, TRUTH, data_range=1e-6, **GAUSS)
        assert found["data range 0"] == pytest.approx(by_0, abs=1e-6)


def test_what_the_page_says():
    scores = {name: {call: float(f(guess, TRUTH)) for call, f in CALLS.items()} for name, guess in GUESSES.items()}
    assert scores["pure noise"]["SSIM"] < 0.1 < 0.7 < scores["pure noise"]["data range 255, normalized pixels"]
    assert scores["0.1 too dark"]["after 8-bit conversion"] < scores["0.1 too dark"]["SSIM"] - 0.1
    assert scores["the image itself"]["after 8-bit conversion"] == pytest.approx(1)


def test_conversion_and_window_of_images_that_one_knows():
    assert (eight_bit(torch.tensor([0.999, -1 / 255, 1.0, 257 / 255])) * 255).tolist() == [254, 255, 255, 1]
    image = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    assert uniform_window(image, image).tolist() == pytest.approx([1, 1])


def test_page_and_picture(tmp_path):
    page, picture = write_legacy(tmp_path)
    text = page.read_text()
    assert all(f"| {name} | " in text for name in GUESSES)
    with Image.open(picture) as image:
        assert image.width > 128 * len(GUESSES)
