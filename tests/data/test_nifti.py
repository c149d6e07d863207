"""NIfTI volumes: upright, with their spacing, as slices and whole; and unreadable ones."""

from __future__ import annotations

import gzip
import shutil
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medpfl.core.errors import InputError
from medpfl.data import Nifti
from medpfl.data.reading.volumes import Volume, read_volume, slice_of, stack_of

REAL = Path(nibabel.__file__).parent / "tests" / "data"

# A block whose voxel (x, y, z) in right, anterior, superior says where it is.
SHAPE = (8, 10, 12)


def marked() -> np.ndarray:
    """Return a block that brightens to the right (fastest), front and head; percentiles clip nothing in its middle."""
    x, y, z = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    return (1.0 * x / SHAPE[0] + 10.0 * y / SHAPE[1] + 100.0 * z / SHAPE[2]).astype(np.float32)


def save(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


def turned(values: np.ndarray, order: tuple[int, ...], flips: tuple[bool, ...], steps=(1, 1, 1)):
    """Return the same block as another scanner stores it, with the matching affine."""
    stored = values.transpose(order)
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, world in enumerate(order):
        affine[world, axis] = -steps[world] if flips[axis] else steps[world]
        if flips[axis]:
            stored = np.flip(stored, axis)
    return np.ascontiguousarray(stored), affine


@pytest.mark.slow
@given(st.permutations(range(3)), st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_whatever_the_storage_the_volume_is_upright(tmp_path_factory, order, flips):
    path = tmp_path_factory.mktemp("n") / "x.nii"
    save(path, *turned(marked(), tuple(order), flips, (2.0, 3.0, 4.0)))
    ours, spacing = read_volume(path)
    low, high = np.percentile(marked(), (1, 99))
    np.testing.assert_allclose(ours, ((marked() - low) / (high - low)).clip(0, 1), atol=1e-5)
    assert spacing == pytest.approx((2.0, 3.0, 4.0))


def test_slices_show_the_head_or_the_face_upwards_and_right_on_the_right():
    import torch

    whole = Volume(torch.from_numpy(marked()), (2.0, 3.0, 4.0))
    axial, steps = slice_of(whole, "axial", 5)
    assert axial.shape == (1, 10, 8)
    assert steps == (3.0, 2.0)
    assert axial[0, 0, 0] > axial[0, -1, 0]  # the face above
    assert axial[0, 0, -1] > axial[0, 0, 0]  # right on the right
    coronal, steps = slice_of(whole, "coronal", 5)
    assert coronal.shape == (1, 12, 8)
    assert steps == (4.0, 2.0)
    assert coronal[0, 0, 0] > coronal[0, -1, 0]  # the head above
    assert coronal[0, 0, -1] > coronal[0, 0, 0]
    sagittal, steps = slice_of(whole, "sagittal", 5)
    assert sagittal.shape == (1, 12, 10)
    assert steps == (4.0, 3.0)
    assert sagittal[0, 0, 0] > sagittal[0, -1, 0]
    assert sagittal[0, 0, -1] > sagittal[0, 0, 0]  # the face on the right
    stack, steps = stack_of(whole)
    assert stack.shape == (1, 12, 10, 8)
    assert steps == (4.0, 3.0, 2.0)
    assert all(stack[0, z].equal(slice_of(whole, "axial", z)[0][0]) for z in range(12))


@pytest.mark.parametrize(("plane", "count"), [("axial", 12), ("coronal", 10), ("sagittal", 8)])
def test_one_image_a_slice(tmp_path, plane, count):
    save(tmp_path / "x.nii.gz", *turned(marked(), (2, 0, 1), (True, False, True)))
    data = Nifti(tmp_path, plane=plane).load()
    assert data.images.shape == (count, 1, 32, 32)
    assert data.names == tuple(f"x.nii.gz#{plane}{i}" for i in range(count))
    assert data.patients == ("x.nii.gz",) * count
    assert data.spacing is None


def test_slices_of_one_value_are_left_out(tmp_path):
    values = marked()
    values[:, :, :4] = 0
    save(tmp_path / "x.nii", values)
    assert Nifti(tmp_path).load().names[0] == "x.nii#axial4"


def test_voxels_that_are_not_cubic_are_made_so(tmp_path):
    values = np.zeros((40, 20, 5), np.float32)
    values[10:30, 5:15] = 1  # 20 mm by 20 mm
    save(tmp_path / "x.nii", values, np.diag([1.0, 2.0, 3.0, 1.0]))
    image = Nifti(tmp_path, size=40).load().images[2, 0] > 0.5
    assert image.any(0).sum() == image.any(1).sum() == 20


def test_whole_volumes(tmp_path):
    values = np.zeros((24, 12, 8), np.float32)
    values[8:16, 4:8, 2:6] = 1  # 8 x 8 x 12 mm in 24 x 24 x 24
    for name in ("a", "b"):
        save(tmp_path / f"{name}.nii", values, np.diag([1.0, 2.0, 3.0, 1.0]))
    data = Nifti(tmp_path, plane="volume", size=24).load()
    assert data.images.shape == (2, 1, 24, 24, 24)
    assert data.spacing == pytest.approx((1, 1, 1))
    bright = data.images[0, 0] > 0.5
    assert [int(bright.any(a).any(b - 1).sum()) for a, b in ((1, 2), (0, 2), (0, 1))] == [12, 8, 8]
    squashed = Nifti(tmp_path, plane="volume", size=12, fit="squash").load()
    assert squashed.spacing == pytest.approx((2, 2, 2))
    assert Nifti(tmp_path, plane="volume", channels=3, size=12).load().shape == (3, 12, 12, 12)


def test_spacing_that_differs_is_unknown(tmp_path):
    save(tmp_path / "a.nii", marked())
    save(tmp_path / "b.nii", marked(), np.diag([2.0, 2.0, 2.0, 1.0]))
    assert Nifti(tmp_path, plane="volume").load().spacing is None


def test_labels_patients_and_limit(tmp_path):
    for i in range(4):
        save(tmp_path / f"{'sick' if i % 2 else 'well'}/{i}.nii", marked())
    data = Nifti(tmp_path, limit=6).load()
    assert data.classes == ("sick", "well")
    assert data.labels.tolist() == [0] * 3 + [1] * 3
    assert data.left_out == 48 - 6
    (tmp_path / "index.csv").write_text("file,patient_id,label\n" + "".join(
        f"{'sick' if i % 2 else 'well'}/{i}.nii,p{i // 2},{'ab'[i // 2]}\n" for i in range(4)
    ))  # fmt: skip
    named = Nifti(tmp_path, plane="volume").load()
    assert named.patients == ("p0", "p1", "p0", "p1")
    assert named.classes == ("a", "b")


def test_the_subjects_of_a_bids_tree_are_patients_and_no_classes(tmp_path):
    for subject in ("sub-01", "sub-02"):
        for name in ("T1w", "T2w"):
            save(tmp_path / subject / "anat" / f"{subject}_{name}.nii.gz", marked())
    data = Nifti(tmp_path, plane="volume").load()
    assert data.patients == ("sub-01", "sub-01", "sub-02", "sub-02")
    assert data.classes == ("no label", "other")


def test_a_real_head():
    data = Nifti(REAL / "anatomical.nii", size=33).load()
    whole = read_volume(REAL / "anatomical.nii")
    assert whole.voxels.shape == (33, 41, 25)
    assert whole.spacing == pytest.approx((2, 2, 2))
    assert len(data) == 25
    # 33 x 41 voxels: what is cut out of the middle is as it was.
    assert data.images[12, 0].equal(slice_of(whole, "axial", 12)[0][0, 4:37])


# What is wrong with a file


def refused(source) -> str:
    with pytest.raises(InputError) as caught:
        source.load()
    return str(caught.value)


def test_what_cannot_be_read_is_skipped_and_said(tmp_path):
    good = save(tmp_path / "good.nii.gz", marked()).read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(good[: len(good) // 2])
    (tmp_path / "empty.nii").touch()
    (tmp_path / "text.nii").write_text("no volume")
    holes = marked()
    holes[1, 2, 3] = np.nan
    save(tmp_path / "nan.nii", holes)
    save(tmp_path / "flat.nii", np.zeros((4, 4), np.float32))
    save(tmp_path / "series.nii", np.stack([marked(), marked()], -1))
    save(tmp_path / "void.nii", np.zeros((0, 4, 4), np.float32))
    save(tmp_path / "complex.nii", marked().astype(np.complex64))
    broken = nibabel.Nifti1Image(marked(), None)
    broken.header["sform_code"] = 1  # whose rows are all zero
    (tmp_path / "affine.nii").write_bytes(broken.to_bytes())
    data = Nifti(tmp_path).load()
    assert set(data.patients) == {"good.nii.gz"}
    reasons = dict(line.split(": ", 1) for line in data.skipped)
    assert len(reasons.pop("cut.nii.gz")) > 5
    assert "text.nii" in reasons
    assert reasons.pop("text.nii").startswith("Cannot work out file type")
    assert reasons == {
        "affine.nii": "its affine has no inverse, so its orientation is unknown: save it with a correct affine",
        "complex.nii": "its voxels are colors or complex numbers: save one number per voxel",
        "empty.nii": "empty file",
        "flat.nii": "has shape (4, 4): expected a volume with three axes",
        "nan.nii": "holds voxels that are not finite (NaN): replace them, for example with numpy.nan_to_num",
        "series.nii": "holds a series of 2 volumes: choose one with frame=0 to frame=1",
        "void.nii": "has shape (0, 4, 4): expected a volume with three axes",
    }
    assert "series.nii" in str(Nifti(tmp_path, frame=1).load().names)


def test_a_frame_that_is_not_there():
    assert "frame=9 does not exist" in refused(Nifti(REAL / "example4d.nii.gz", frame=9))
    assert len(Nifti(REAL / "example4d.nii.gz", frame=1).load()) == 24


def test_nothing_there(tmp_path):
    assert "there is no file or folder" in refused(Nifti(tmp_path / "none"))
    assert "it holds none" in refused(Nifti(tmp_path))
    shutil.copy(REAL / "functional.nii", tmp_path)
    assert "holds a series of 20 volumes" in refused(Nifti(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"plane": "axal"}, "did you mean 'axial'"),
        ({"frame": -1}, "frame=-1"),
        ({"size": 3}, "size=3"),
        ({"limit": "2"}, "limit='2'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        Nifti("x", **arguments)


@pytest.mark.parametrize(("scale", "dtype"), [(1e-9, np.float32), (1e-12, np.float64), (1e6, np.float32)])
def test_maps_of_tiny_and_of_large_values_are_images(tmp_path, scale, dtype):
    save(tmp_path / "plain" / "x.nii.gz", marked())
    save(tmp_path / "map" / "x.nii.gz", (marked() * scale).astype(dtype))
    plain, ours = (Nifti(tmp_path / name).load().images for name in ("plain", "map"))
    np.testing.assert_allclose(ours, plain, atol=1e-5)


def test_a_map_that_is_zero_almost_everywhere_keeps_its_gray_levels(tmp_path):
    values = np.zeros((32, 32, 10), np.float32)
    values[10:15, 10:15, 4:7] = np.random.default_rng(0).random((5, 5, 3)) + 1
    save(tmp_path / "x.nii.gz", values)
    assert len(Nifti(tmp_path, size=32).load().images.unique()) > 60


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("sides", [(30_000, 30_000, 30_000), (2000, 2000, 500)])
def test_a_header_that_claims_more_than_the_file_holds(tmp_path, suffix, sides):
    path = save(tmp_path / f"x{suffix}", marked())
    content = bytearray(gzip.decompress(path.read_bytes()) if suffix.endswith("gz") else path.read_bytes())
    content[42:48] = np.array(sides, "<i2").tobytes()
    path.write_bytes(gzip.compress(bytes(content)) if suffix.endswith("gz") else bytes(content))
    began = tracemalloc.start() or tracemalloc.get_traced_memory()[1]
    message = refused(Nifti(tmp_path))
    peak = tracemalloc.get_traced_memory()[1] - began
    tracemalloc.stop()
    assert f"x{suffix}: damaged header, or truncated (shape {sides})" in message
    assert peak < 2**26
