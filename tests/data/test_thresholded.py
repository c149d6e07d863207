"""Masks by a rule: Otsu's threshold as in scikit-image, and the background at the border."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.filters import threshold_otsu

from medpfl import InputError
from medpfl.data import ImageFolder, Samples, Thresholded
from medpfl.data.thresholded import otsu


@pytest.mark.parametrize("image", [0, 7, 20])
def test_the_threshold_is_otsu_s(image):
    gray = Samples(size=48).load().images[image, 0]
    own = torch.cat([gray.flatten(), torch.tensor([0.0, 1.0])])  # so that both spread their bins from 0 to 1
    assert otsu(own) == pytest.approx(threshold_otsu(own.numpy(), nbins=256), abs=1.5 / 256)


@pytest.mark.parametrize(("ground", "object"), [(20, 200), (200, 20), (160, 220), (220, 160)])
def test_the_structure_is_what_the_border_is_not(tmp_path, ground, object):
    picture = np.full((24, 24), ground, dtype=np.uint8)
    picture[6:16, 8:20] = object
    (tmp_path / "a").mkdir()
    for name in ("0", "1"):
        Image.fromarray(picture).save(tmp_path / "a" / f"{name}.png")
    data = Thresholded(tmp_path, size=24).load()
    wanted = torch.zeros(24, 24, dtype=torch.long)
    wanted[6:16, 8:20] = 1
    assert data.masks.equal(torch.stack([wanted] * 2))
    assert data.images.equal(ImageFolder(tmp_path, size=24).load().images)
    assert data.classes == ("background", "structure")
    assert data.labels.tolist() == [1, 1]


def test_the_samples_and_images_of_one_gray(tmp_path):
    data = Thresholded("samples").load()
    assert data.images.equal(Samples().load().images)
    assert 0.05 < data.masks.double().mean() < 0.6
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((24, 24), 9, dtype=np.uint8)).save(tmp_path / "a" / "0.png")
    with pytest.raises(InputError, match="nothing to segment"):
        Thresholded(tmp_path).load()
