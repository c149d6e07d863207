"""Whole volumes go through an audit to the pages: a 3D network with real voxels."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from medpfl import Run, Victims, audit
from medpfl.auditing.store import stored
from medpfl.data import Nifti

HEAD = Path(nibabel.__file__).parent / "tests" / "data" / "anatomical.nii"


@pytest.mark.slow
def test_a_volume_is_read_back(tmp_path):
    source = Nifti(HEAD, plane="volume", size=12)
    report = audit(
        "MLP((16,), 'sigmoid')",
        source,
        attacks=["iDLG(steps=60)"],
        victims=Victims(images=1),
        run=Run(out=tmp_path / "run", memory=0.5),
    )
    (row,) = [row for row in report.rows if not row.control]
    assert row.scores["psnr"] > 30
    assert row.data == "Nifti(plane='volume', size=12)"
    assert (tmp_path / "run" / "private/report-with-images.html").stat().st_size > 10_000
    page = (tmp_path / "run" / "private/report-with-images.html").read_text()
    assert "A volume is shown as four slices along its depth" in page
    truth, guess = stored(tmp_path / "run").picture(row)
    assert truth.shape == guess.shape == (25, 25)
    volume = (source.load().images[0, 0] * 255).round().to(torch.uint8).numpy()
    corners = [(0, 0), (0, 13), (13, 0), (13, 13)]
    for (top, left), depth in zip(corners, (1, 4, 7, 10), strict=True):
        assert np.array_equal(truth[top : top + 12, left : left + 12], volume[depth])
    assert (truth[12] == 255).all(), "a white line between"
