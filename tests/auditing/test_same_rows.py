"""The same pixels give the same rows through class folders and through DICOM files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from medpfl import audit
from tests.data.made_dicom import dicom
from tests.flat import flat


@pytest.mark.slow
def test_the_same_pixels_give_the_same_rows(tmp_path):
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16), np.uint8)
        name = f"{'benign' if i % 2 else 'malignant'}/{i}"
        (tmp_path / "png" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "png" / f"{name}.png")
        dicom(tmp_path / "dcm" / f"{name}.dcm", pixels, PatientID=str(i))
    options = {"attacks": ["iDLG(steps=20)"], "images": 4, "size": 16}
    one, two = (flat(audit, "LeNet('idlg')", tmp_path / kind, **options).rows for kind in ("png", "dcm"))
    assert len(one) == len(two) > 4
    for row, other in zip(one, two, strict=True):
        for name in ("attack", "control", "victim", "position", "label", "label_guess", "ended"):
            assert getattr(row, name) == getattr(other, name)
        assert row.scores["ssim"] == pytest.approx(other.scores["ssim"], abs=1e-3)
        assert row.loss == pytest.approx(other.loss, rel=1e-2)
