"""``python -m benchmarks.fuzz``: damaged files for every reader; all that may come of one is images or an `InputError`.

Prints, for each kind of failure, the seed that makes it again; ends with status 1 if there is any.
"""

from __future__ import annotations

import argparse
import gzip
import io
import resource
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import torch
from PIL import Image
from pydicom.data import get_testdata_file

from medpfl.auditing.inputs import is_record, source_of
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.records import Record
from medpfl.core.types import Update, Weights
from medpfl.data import Dicom, ImageFolder, MedMNIST, Nifti, Segmented
from medpfl.data.images import LabelledImages
from medpfl.models.weights import load_weights

PATIENCE = 20
"""Seconds after which a reader hangs."""
MEMORY = 6 * 2**30
"""Bytes that the process may take."""
EXTREMES = (
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x80",
    b"\xff\xff\xff\x7f",
    b"\n",
    b",",
)

Files = dict[str, bytes]


class LateError(BaseException):
    """A reader hangs; no reader takes it for a damaged file."""


class Target(NamedTuple):
    """A reader, whole files for it, which of them is damaged, and how that one is packed afterwards.

    What is packed has a checksum: damaged from outside, hardly anything gets past it.
    """

    files: Files
    damaged: str
    read: Callable[[Path], object]
    pack: Callable[[bytes], bytes] = bytes


def main(arguments: Sequence[str] | None = None) -> int:
    """Damages and reads files for so long."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for how long")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--only", default="", help="readers whose names hold this")
    given = parser.parse_args(arguments)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    chosen = {name: target for name, target in targets().items() if given.only in name}
    end, seed, failures = time.monotonic() + given.seconds, given.start, {}
    tally = {name: [0, 0] for name in chosen}
    while time.monotonic() < end:
        for name, target in chosen.items():
            refused, failure = attempt(target, seed)
            tally[name][0] += 1
            tally[name][1] += refused
            if failure and (name.split()[0], failure) not in failures:
                failures[name.split()[0], failure] = seed
                print(f"{name}, seed {seed}: {failure}", flush=True)
        seed += 1
    for name, (tried, refused) in tally.items():
        print(f"{name}: {tried} files, {refused} refused")
    return int(bool(failures))


def attempt(target: Target, seed: int) -> tuple[bool, str]:
    """Whether a damaged file was refused, and what went wrong that may not."""
    random = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as root:
        for name, content in target.files.items():
            path = Path(root, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(target.pack(damaged(content, random)) if name == target.damaged else content)
        try:
            with impatient():
                found = target.read(Path(root))
        except InputError:
            return True, ""
        except (Exception, LateError) as error:
            where = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in where if "medpfl" in frame.filename][-1:] or where[-1:]
            return False, f"{type(error).__name__} at {Path(ours[0].filename).name}:{ours[0].lineno}: {error}"[:200]
        return False, wrong(found)


def wrong(found: object) -> str:
    """What is wrong with images that were read."""
    if not isinstance(found, LabelledImages):
        return ""
    if not (found.images.isfinite().all() and found.images.min() >= 0 and found.images.max() <= 1):
        return "images that are not in [0, 1]"
    lengths = {len(part) for part in (found.images, found.labels, found.names, found.patients)}
    return "" if lengths == {len(found)} else "names, labels and images of different numbers"


@contextmanager
def impatient() -> Iterator[None]:
    """An error after `PATIENCE`."""

    def late(*_: object) -> None:
        raise LateError(f"not done after {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """One to eight changes, half of them in the first kilobyte, where headers are."""
    data = bytearray(content)
    for _ in range(int(random.integers(1, 9))):
        reach = min(len(data), 1024) if random.random() < 0.5 else len(data)
        place, other = (int(random.integers(0, reach + 1)) for _ in range(2))
        match int(random.integers(0, 6)):
            case 0 if data:
                data[place % len(data)] ^= 1 << int(random.integers(0, 8))
            case 1:
                new = EXTREMES[int(random.integers(0, len(EXTREMES)))]
                data[place : place + len(new)] = new
            case 2:
                del data[place : place + int(random.integers(1, 64))]
            case 3:
                data[place:place] = data[other : other + int(random.integers(1, 64))]
            case 4:
                data[place : place + 8] = random.bytes(8)
            case 5 if random.random() < 0.3:
                del data[place:]
    return bytes(data)


def targets() -> dict[str, Target]:
    """By name; the first word names the reader."""
    made = {**dicom_targets(), **nifti_targets(), **picture_targets(), **array_targets(), **table_targets()}
    return {**made, **saved_targets()}


def dicom_targets() -> dict[str, Target]:
    """Small files of pydicom's, and its DICOMDIR."""
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
    """A real volume, cut small, in three forms."""
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
    """Pictures of every format and depth."""
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
    """The file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
    return out.getvalue()


def array_targets() -> dict[str, Target]:
    """``.npz`` files, damaged from outside and inside one array."""
    random = np.random.default_rng(0)
    pixels, labels = random.integers(0, 256, (6, 12, 12), np.uint8), random.integers(0, 2, (6, 1), np.uint8)
    plain = {"train_images": pixels, "train_labels": labels}
    pairs = {"images": pixels, "masks": (pixels > 99).astype(np.uint8), "patients": np.arange(6)}
    made = {}
    for kind, arrays, read in (("npz", plain, _read_set), ("npz-masks", pairs, _read_pairs)):
        out = io.BytesIO()
        np.savez_compressed(out, **arrays)
        made[f"{kind} outside"] = Target({"x.npz": out.getvalue()}, "x.npz", read)
        for name in arrays:
            whole = {own: npy(array) for own, array in arrays.items()}
            pack = partial(_packed, whole, name)
            made[f"{kind} {name}"] = Target({"x.npz": whole[name]}, "x.npz", read, pack)
    return made


def npy(array: np.ndarray) -> bytes:
    """The file."""
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
    return source_of(f"{root}/x.npz", 16, "crop", None).load()


def table_targets() -> dict[str, Target]:
    """Tables beside images."""
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
    """Weights and recorded updates."""
    network = torch.nn.Linear(4, 2)
    weights = Weights.of(network)
    pickled = io.BytesIO()
    torch.save(network.state_dict(), pickled)
    with tempfile.TemporaryDirectory() as root:
        sent = Update({name: torch.ones_like(t) for name, t in weights.parameters.items()}, num_samples=1)
        sent.save(Path(root, "r"), Plan(), weights, image_shape=(1, 2, 2), classes=("a", "b"))
        record = Path(root, "r").read_bytes()
    fresh = lambda: torch.nn.Linear(4, 2)  # noqa: E731
    return {
        "weights pickled": Target(
            {"w.pt": pickled.getvalue()}, "w.pt", lambda root: load_weights(fresh(), root / "w.pt")
        ),
        "record": Target({"r": record}, "r", lambda root: is_record(root / "r") and Record.load(root / "r")),
    }


if __name__ == "__main__":
    sys.exit(main())
