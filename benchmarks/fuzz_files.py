"""Valid files for every reader, which `benchmarks.fuzz` damages."""

from __future__ import annotations

import gzip
import io
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import torch
from PIL import Image
from pydicom.data import get_testdata_file

from medpfl.core.experiments.groups import Reading
from medpfl.core.plan import Plan
from medpfl.core.records.record import Record
from medpfl.core.types import Update, Weights
from medpfl.data import Dicom, ImageFolder, MedMNIST, Nifti, Segmented
from medpfl.inputs.parts import is_record, source_of
from medpfl.models.weights import load_weights

Files = dict[str, bytes]


class Target(NamedTuple):
    """A reader, valid files for it, the file to damage, and a function that packs that file after the damage.

    Packing adds a checksum. Damage from outside would rarely get past it.
    """

    files: Files
    damaged: str
    read: Callable[[Path], object]
    pack: Callable[[bytes], bytes] = bytes


def targets() -> dict[str, Target]:
    """Return all targets by name. The first word names the reader."""
    made = {**dicom_targets(), **nifti_targets(), **picture_targets(), **array_targets(), **table_targets()}
    return {**made, **saved_targets()}


def dicom_targets() -> dict[str, Target]:
    """Return pydicom's small test files, and its DICOMDIR."""
    names = (
        "CT_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "SC_rgb_small_odd.dcm", "OBXXXX1A_rle_2frame.dcm",
        "SC_rgb_jpeg_dcmtk.dcm", "MR_small_implicit.dcm", "examples_palette.dcm", "emri_small.dcm", "liver_1frame.dcm",
    )  # fmt: skip
    folder = Path(str(get_testdata_file("CT_small.dcm", download=False))).parent
    made = {
        f"dicom {name}": Target(
            {"x.dcm": (folder / name).read_bytes()}, "x.dcm", lambda root: Dicom(root, group="file").load()
        )
        for name in names
        if (folder / name).is_file()
    }
    directory = folder / "dicomdirtests"
    files = {"DICOMDIR": (directory / "DICOMDIR").read_bytes()}
    files |= {f"77654033/CR1/{n}": (directory / "77654033" / "CR1" / n).read_bytes() for n in ("6154",)}
    return made | {"dicom DICOMDIR": Target(files, "DICOMDIR", lambda root: Dicom(root / "DICOMDIR").load())}


def nifti_targets() -> dict[str, Target]:
    """Return a small part of a real volume, in four forms."""
    real: nibabel.Nifti1Image = nibabel.load(Path(nibabel.__file__).parent / "tests" / "data" / "anatomical.nii")  # type: ignore[attr-defined, assignment]
    values, affine = np.asarray(real.dataobj)[8:20, 8:24, 5:15].astype(np.int16), real.affine
    plain = nibabel.Nifti1Image(values, affine).to_bytes()
    made = {"one": plain, "two": nibabel.Nifti2Image(values, affine).to_bytes()}
    found = {
        f"nifti {name}": Target({"x.nii": content}, "x.nii", lambda root: Nifti(root, limit=4).load())
        for name, content in made.items()
    }
    whole = lambda root: Nifti(root, plane="volume", size=16).load()  # noqa: E731
    inside = Target({"x.nii.gz": plain}, "x.nii.gz", whole, gzip.compress)
    return found | {
        "nifti packed": Target({"x.nii.gz": gzip.compress(plain)}, "x.nii.gz", whole),
        "nifti inside": inside,
    }


def picture_targets() -> dict[str, Target]:
    """Return pictures in several formats and depths, and a mask."""
    random = np.random.default_rng(0)
    gray, deep = random.integers(0, 256, (24, 20), np.uint8), random.integers(0, 65536, (24, 20), np.uint16)
    color = random.integers(0, 256, (24, 20, 3), np.uint8)
    made = {}
    kinds = (("png", gray), ("png", deep), ("png", color), ("jpg", gray), ("jpg", color), ("tif", deep), ("bmp", color))
    for suffix, pixels in kinds:
        name = f"picture {suffix} {pixels.dtype}{pixels.shape[2:] or ''}"
        made[name] = Target(
            {f"a/x.{suffix}": picture(pixels, suffix)}, f"a/x.{suffix}", lambda root: ImageFolder(root).load()
        )
    files = {"images/0.png": picture(gray, "png"), "masks/0.png": picture((gray > 99).astype(np.uint8), "png")}
    return made | {"masks png": Target(files, "masks/0.png", lambda root: Segmented(root).load())}


def picture(pixels: np.ndarray, suffix: str) -> bytes:
    """Encode pixels as a picture file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
    return out.getvalue()


def array_targets() -> dict[str, Target]:
    """Return ``.npz`` files that are damaged from outside, or inside one array."""
    random = np.random.default_rng(0)
    pixels, labels = random.integers(0, 256, (6, 12, 12), np.uint8), random.integers(0, 2, (6, 1), np.uint8)
    plain = {"train_images": pixels, "train_labels": labels}
    pairs = {"images": pixels, "masks": (pixels > 99).astype(np.uint8), "patients": np.arange(6)}
    made = {}
    for kind, arrays, read in (("npz", plain, _read_set), ("npz-masks", pairs, _read_pairs)):
        out = io.BytesIO()
        np.savez_compressed(out, allow_pickle=False, **arrays)
        made[f"{kind} outside"] = Target({"x.npz": out.getvalue()}, "x.npz", read)
        for name in arrays:
            whole = {own: npy(array) for own, array in arrays.items()}
            pack = partial(_packed, whole, name)
            made[f"{kind} {name}"] = Target({"x.npz": whole[name]}, "x.npz", read, pack)
    return made


def npy(array: np.ndarray) -> bytes:
    """Encode an array as an ``.npy`` file."""
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def _packed(arrays: Mapping[str, bytes], name: str, other: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for own, content in arrays.items():
            archive.writestr(f"{own}.npy", other if own == name else content)
    return out.getvalue()


def _read_set(root: Path) -> object:
    return MedMNIST(root / "x.npz").load()


def _read_pairs(root: Path) -> object:
    return source_of(f"{root}/x.npz", Reading(size=16)).load()


def table_targets() -> dict[str, Target]:
    """Return folders with an ``index.csv`` to damage."""
    gray = np.random.default_rng(0).integers(0, 256, (24, 20), np.uint8)
    pictures = {f"{name}/{i}.png": picture(gray, "png") for name in "ab" for i in range(2)}
    index = "file,patient_id\n" + "".join(f"{name},p{i}\n" for i, name in enumerate(pictures))
    slices = {f"{i}.dcm": Path(str(get_testdata_file("CT_small.dcm", download=False))).read_bytes() for i in range(2)}
    labels = "file,label,patient_id\n0.dcm,benign,p\n1.dcm,malignant,q\n"
    return {
        "csv patients": Target(pictures | {"index.csv": index.encode()}, "index.csv", lambda r: ImageFolder(r).load()),
        "csv labels": Target(slices | {"index.csv": labels.encode()}, "index.csv", lambda root: Dicom(root).load()),
    }


def saved_targets() -> dict[str, Target]:
    """Return weights and a recorded update."""
    network = torch.nn.Linear(4, 2)
    weights = Weights.of(network)
    pickled = io.BytesIO()
    torch.save(network.state_dict(), pickled)
    with tempfile.TemporaryDirectory() as root:
        sent = Update({name: torch.ones_like(t) for name, t in weights.parameters.items()}, num_samples=1)
        Record(sent, Plan(), weights, image_shape=(1, 2, 2), classes=("a", "b")).save(Path(root, "r"))
        record = Path(root, "r").read_bytes()
    fresh = lambda: torch.nn.Linear(4, 2)  # noqa: E731
    return {
        "weights pickled": Target(
            {"w.pt": pickled.getvalue()}, "w.pt", lambda root: load_weights(fresh(), root / "w.pt")
        ),
        "record": Target({"r": record}, "r", lambda root: is_record(root / "r") and Record.load(root / "r")),
    }
