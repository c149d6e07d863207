"""Whole volumes go through an audit, to the pages: a network in three dimensions, with real voxels."""

from __future__ import annotations

from pathlib import Path

import nibabel

from medpfl import audit
from medpfl.data import Nifti

HEAD = Path(nibabel.__file__).parent / "tests" / "data" / "anatomical.nii"


def test_a_volume_is_read_back(tmp_path):
    source = Nifti(HEAD, plane="volume", size=12)
    report = audit(
        "MLP((16,), 'sigmoid')", source, attacks=["iDLG(steps=60)"], images=1, out=tmp_path / "run", memory=0.5
    )
    (row,) = [row for row in report.rows if not row.control]
    assert row.scores["psnr"] > 30
    assert row.data == "Nifti(plane='volume', size=12)"
    assert (tmp_path / "run" / "report-with-images.html").stat().st_size > 10_000
