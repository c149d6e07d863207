"""Faults in hospitals' files and users' models, from the command line: a message with the remedy."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image

from medpfl import cli
from tests.data.made_dicom import dicom

TINY = ["--attack", "iDLG(steps=2)", "--size", "16", "--images", "2", "--quiet", "--show-paths"]


@pytest.fixture
def run(capsys, monkeypatch) -> Callable[..., tuple[int, str]]:
    """Call an audit; return its status and its output."""
    monkeypatch.setenv("COLUMNS", "300")

    def call(data, *words, model="MLP((4,))") -> tuple[int, str]:
        status = cli.main(["audit", str(data), "--model", str(model), *TINY, *map(str, words)])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err + shown.out
        return status, shown.err

    return call


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, shape or (20, 24), dtype=np.uint8)


# Images: each maker writes one file into a folder; what is said of it


def nifti(folder: Path, values: np.ndarray, name: str = "bad.nii") -> None:
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / name)


def no_affine(folder: Path) -> None:
    image = nibabel.Nifti1Image(noise(8, 8, 4), None)
    image.header["sform_code"] = 1  # whose rows are all zero
    (folder / "bad.nii").write_bytes(image.to_bytes())


NIFTI = {
    "NaN": (lambda f: nifti(f, np.full((8, 8, 4), np.nan, "f4")), "holds voxels that are not finite (NaN): replace"),
    "broken affine": (no_affine, "its affine has no inverse, so its orientation is unknown: save it with a correct"),
    "4-D": (lambda f: nifti(f, noise(8, 8, 4, 3)), "holds a series of 3 volumes: choose one with frame=0 to frame=2"),
    "empty": (lambda f: (f / "bad.nii").touch(), "empty file"),
    "no voxels": (
        lambda f: nifti(f, np.zeros((0, 8, 4), "u1")),
        "has shape (0, 8, 4): expected a volume with three axes",
    ),
}


def without(folder: Path, *tags: str) -> None:
    dicom(folder / "bad.dcm", noise(), PatientID="p")
    header = pydicom.dcmread(folder / "bad.dcm")
    for tag in tags:
        delattr(header, tag)
    header.save_as(folder / "bad.dcm")


def unknown_syntax(folder: Path) -> None:
    dicom(folder / "bad.dcm", noise(), PatientID="p")
    header = pydicom.dcmread(folder / "bad.dcm")
    header.file_meta.TransferSyntaxUID = "1.2.3.4.5"
    header.save_as(folder / "bad.dcm", implicit_vr=False, little_endian=True)


def truncated(folder: Path) -> None:
    dicom(folder / "bad.dcm", noise(), PatientID="p")
    (folder / "bad.dcm").write_bytes((folder / "bad.dcm").read_bytes()[:-100])


DAMAGED = "has fewer or other pixels than its header says: it is truncated or damaged"
DICOM = {
    "no pixels": (lambda f: without(f, "PixelData"), "holds no pixels"),
    "inconsistent sizes": (lambda f: dicom(f / "bad.dcm", noise(), PatientID="p", Rows=99), DAMAGED),
    "unknown syntax": (unknown_syntax, "has the unsupported transfer syntax 1.2.3.4.5: save it as Explicit VR"),
    "truncated": (truncated, DAMAGED),
}
FILES = {**{f"NIfTI, {k}": v for k, v in NIFTI.items()}, **{f"DICOM, {k}": v for k, v in DICOM.items()}}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of tags that pydicom finds odd
@pytest.mark.parametrize(("make", "why"), FILES.values(), ids=FILES)
def test_a_file_that_cannot_be_read(run, tmp_path, make, why):
    """Alone, it is an error; beside others, it is skipped and named on the terminal."""
    folder = tmp_path / "set"
    folder.mkdir()
    make(folder)
    status, said = run(folder)
    assert status == 2
    assert said.startswith("medpfl: error: no ")
    assert why in said
    for i in range(2):
        if (folder / "bad.nii").exists():
            nifti(folder, noise(20, 20, 4, seed=i), f"good{i}.nii")
        else:
            dicom(folder / f"good{i}.dcm", noise(seed=i), PatientID="q")
    status, said = run(folder)
    assert status == 0
    assert "skipped 1 file that could not be read:" in said
    assert why in said


def test_dicom_of_nobody(run, tmp_path):
    dicom(tmp_path / "set" / "a.dcm", noise())
    status, said = run(tmp_path / "set")
    assert status == 2
    assert "1 file(s) have no PatientID, so their patient is unknown:" in said
    assert "add a column 'patient_id' to" in said
    assert "group='file'" in said, "nothing else tells its files apart"


def test_tables_of_labels(run, tmp_path):
    for name in "ab":
        dicom(tmp_path / "set" / f"{name}.dcm", noise(), PatientID=name)
    table = tmp_path / "labels.csv"
    data = f"Dicom('{tmp_path}/set', labels='{table}', size=16)"
    table.write_text("file,label\na.dcm,x\n")
    assert run(data) == (2, f"medpfl: error: '{table}' has no label for 1 file(s):\n  b.dcm\nadd a row for each\n")
    table.write_text("file,label\na.dcm,x\nb.dcm,y\nc.dcm,y\n")
    status, said = run(data)
    assert status == 2
    assert "lists 1 missing file(s):\n  c.dcm\nremove their rows or restore the files" in said


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('code was run')",)


def test_pickled_objects(run, tmp_path):
    path = tmp_path / "set.npz"
    np.savez(path, train_images=np.array([Evil()], dtype=object), train_labels=np.zeros((1, 1), int))
    status, said = run(f"MedMNIST('{path}', 'train', size=16)")
    assert status == 2
    assert "holds pickled objects, and loading them could run code" in said
    np.savez(path, images=np.array([Evil()], dtype=object), masks=np.zeros((1, 9, 9), int))
    status, said = run(path)
    assert status == 2
    assert "holds pickled objects" in said


# Models


MODELS = """
import torch
from torch import nn

class Once(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, slope):
        return Slope.apply(slope, *ctx.saved_tensors)

class Slope(torch.autograd.Function):
    @staticmethod
    def forward(slope, x):
        return slope * x.cos()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, slope):
        raise RuntimeError("derivative for slope is not implemented")

class Net(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.last, self.kind = nn.Linear(256, 2), kind

    def forward(self, x):
        x = x.flatten(1)
        if self.kind == "nan":
            return self.last(x) / 0 * 0
        return Once.apply(self.last(x)) if self.kind == "once" else self.last(x)
"""


@pytest.fixture
def models(tmp_path) -> Path:
    (tmp_path / "models.py").write_text(MODELS)
    return tmp_path / "models.py"


@pytest.fixture
def pictures(tmp_path) -> Path:
    for i in range(4):
        path = tmp_path / "set" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(seed=i)).save(path)
    return tmp_path / "set"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("Net('nan')", "the model's outputs are not finite"),
        ("Net('once')", "the update of this model cannot be differentiated by the images, as attacks do"),
        ("Net", "missing a required argument: 'kind'"),
    ],
)
def test_models_that_cannot_be_attacked(run, pictures, models, call, message):
    status, said = run(pictures, model=f"{models}:{call}")
    assert status == 2
    assert message in said


@pytest.mark.slow
def test_weights_that_are_code(run, pictures, models, tmp_path):
    path = tmp_path / "weights.pt"
    for save in (torch.save, lambda made, place: place.write_bytes(pickle.dumps(made, 2))):
        save({"last.weight": Evil()}, path)
        status, said = run(pictures, "--weights", path, model=f"{models}:Net('')")
        assert status == 2
        assert "is not a weights file: it must be safetensors, or a state dict saved with torch.save" in said
        assert "could run code" in said
