"""Whole volumes go through an audit to the pages: a 3D network with real voxels."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from medpfl import Run, Victims, audit
from medpfl.auditing.store import stored
from medpfl.cli import main
from medpfl.core.experiments.groups import Reading
from medpfl.data import Nifti
from medpfl.inputs.parts import data_of
from medpfl.runs.jobs import job_of
from tests.metrics.phantoms import ssim_of_skimage

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


NET = """
from torch import nn

def make(size):
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, stride=2, padding=1), nn.Sigmoid(), nn.Flatten(), nn.Linear(4 * (size // 2) ** 3, 2)
    )
"""


@pytest.fixture
def volumes(tmp_path):
    """Create a folder with two NIfTI volumes of 14 x 14 x 14 voxels in BIDS folders, and a table of their labels."""
    random, side = np.random.default_rng(0), np.linspace(-1, 1, 14)
    x, y, z = np.meshgrid(side, side, side, indexing="ij")
    for i in range(2):
        center = 0.4 * random.random(3)
        body = ((x - center[0]) ** 2 + y**2 + (z - center[2]) ** 2 < 0.7) * (1 + random.random(x.shape))
        (tmp_path / f"set/sub-{i}").mkdir(parents=True)
        image = nibabel.Nifti1Image(body.astype("float32"), np.eye(4))  # type: ignore[attr-defined]
        nibabel.save(image, tmp_path / f"set/sub-{i}/scan.nii.gz")  # type: ignore[attr-defined]
    (tmp_path / "set/index.csv").write_text("file,label\nsub-0/scan.nii.gz,a\nsub-1/scan.nii.gz,b\n")
    return f"Nifti('{tmp_path / 'set'}', plane='volume', size=12)"


@pytest.mark.slow
def test_volumes_from_checkpoints_to_the_pages(volumes, tmp_path, capsys):
    """``record``, ``inspect`` and ``audit`` take volumes and a network of one's own; scores are those of all voxels."""
    (tmp_path / "net.py").write_text(NET)
    scope: dict = {}
    exec(NET, scope)
    data, network = data_of(volumes, Reading()).images, scope["make"](12)
    assert data.shape == (1, 12, 12, 12)
    torch.save(network.state_dict(), tmp_path / "before.pt")
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    torch.nn.functional.cross_entropy(network(data.images), data.labels).backward()
    optimizer.step()
    torch.save(network.state_dict(), tmp_path / "after.pt")
    model = ["--model", f"{tmp_path / 'net.py'}:make"]
    states = [str(tmp_path / "before.pt"), str(tmp_path / "after.pt")]
    plan = ["--batch-size", "2", "--learning-rate", "0.1", "--out", str(tmp_path / "records")]
    assert main(["record", *states, "--truth", volumes, *model, *plan]) == 0
    (record,) = (tmp_path / "records").glob("*.safetensors")
    truth = ["--truth", str(tmp_path / "records/private-truth" / record.name)]
    assert main(["inspect", str(record), *truth, *model]) == 0
    assert "image shape: 1 x 12 x 12 x 12" in capsys.readouterr().out
    out = ["--attack", "iDLG(steps=3)", "--out", str(tmp_path / "runs/a")]
    assert main(["audit", str(record), *truth, *model, *out]) == 0
    store = stored(tmp_path / "runs/a")
    rows = [row for row in store.rows() if not row.control and row.defense != "NoDefense()"]
    assert len(rows) == 2
    for row in rows:
        names = ("mean_image_ssim", "mean_image_ncc", "noise_ssim", "noise_ncc")
        assert all(isinstance(row.scores[name], float) for name in names)
        assert [shown.shape for shown in store.picture(row)] == [(25, 25)] * 2, "four slices"
        voxels, guess = (t.double().numpy() / 255 for t in pictures_of(tmp_path / "runs/a", row))
        assert row.scores["ncc"] == pytest.approx(np.corrcoef(voxels.ravel(), guess.ravel())[0, 1], abs=0.01)
        assert row.scores["ssim"] == pytest.approx(ssim_of_skimage(torch.tensor(guess), torch.tensor(voxels)), abs=0.01)
    assert main(["audit", volumes, *model, "--images", "1", *out[:2], "--out", str(tmp_path / "runs/b")]) == 0


def pictures_of(out, row):
    """Return a row's target image and guess (1, D, H, W), as bytes."""
    place = [r.image for r in stored(out).rows() if job_of(r) == job_of(row)].index(row.image)
    kept = load_file(out / "private/images" / job_of(row).file_name())
    return kept["truths"][place], kept["guesses"][place]
