"""NIfTI volumes and DICOM files with masks: slices and whole volumes, the same voxels, and refused input."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from medpfl import InputError
from medpfl.data import Nifti, Segmented
from medpfl.data.choose import source_at
from medpfl.data.reading.volumes import read_labels, read_volume
from tests.data.made_dicom import dicom
from tests.data.test_nifti import REAL, marked, turned


def save(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


def bright(values: np.ndarray, kind: str = "u1") -> np.ndarray:
    """Return a mask: 2 where a block of marked voxels is bright."""
    return (2 * (values > np.median(values))).astype(kind)


def pair(root: Path, name: str = "a", values: np.ndarray | None = None, affine=None, kind: str = "u1") -> Path:
    values = marked() if values is None else values
    save(root / "images" / f"{name}.nii.gz", values, affine)
    save(root / "masks" / f"{name}.nii.gz", bright(values, kind), affine)
    return root


def test_slices_with_masks_are_those_of_the_volumes(tmp_path):
    """The slices equal `Nifti`'s, and the mask lies where the image is bright."""
    root = pair(tmp_path / "d", affine=np.diag([1.0, 2.0, 3.0, 1.0]))
    for plane, count in (("axial", 12), ("coronal", 10), ("sagittal", 8)):
        data = Segmented(root, size=16, plane=plane).load()
        alone = Nifti(root / "images", size=16, plane=plane).load()
        assert data.images.equal(alone.images)
        assert data.names == alone.names == tuple(f"a.nii.gz#{plane}{i}" for i in range(count))
        assert data.patients == alone.patients
        assert data.masks.shape == (count, 16, 16)
        middle = data.images[:, 0][data.masks == 1]
        assert middle.min() > data.images[:, 0][data.masks == 0].mean()
    assert isinstance(source_at(str(root)), Segmented)


def test_whole_volumes_with_masks_and_spacing(tmp_path):
    root = pair(tmp_path / "d", affine=np.diag([2.0, 2.0, 2.0, 1.0]))
    pair(root, "b", affine=np.diag([2.0, 2.0, 2.0, 1.0]))
    data = Segmented(root, size=8, plane="volume").load()
    assert (data.shape, tuple(data.masks.shape)) == ((1, 8, 8, 8), (2, 8, 8, 8))
    assert data.spacing == pytest.approx((2.0, 2.0, 2.0))
    assert data.classes == ("background", "structure 1")
    assert data.images.equal(Nifti(root / "images", size=8, plane="volume").load().images)
    assert data.images[:, 0][data.masks == 1].mean() > 0.5 > data.images[:, 0][data.masks == 0].mean()


@pytest.mark.parametrize("flips", [(False, True, False), (True, True, True)])
def test_a_mask_that_is_stored_another_way_lies_on_its_image(tmp_path, flips):
    """The same voxels at the same places, stored along other axes: the affines tell."""
    root = pair(tmp_path / "d")
    save(root / "masks" / "a.nii.gz", *turned(bright(marked()), (2, 0, 1), flips))
    # Flipped axes end at the first voxel, so the affine must say where that lies.
    stored = nibabel.load(root / "masks" / "a.nii.gz")
    affine = stored.affine.copy()
    for axis, world in enumerate((2, 0, 1)):
        affine[world, 3] = marked().shape[world] - 1 if flips[axis] else 0
    save(root / "masks" / "a.nii.gz", np.asarray(stored.dataobj), affine)
    own = read_labels(root / "masks" / "a.nii.gz", root / "images" / "a.nii.gz")
    assert np.array_equal(own, bright(marked()))


def test_one_volume_of_a_series_has_the_mask(tmp_path):
    root = pair(tmp_path / "d")
    save(root / "images" / "a.nii.gz", np.stack([marked(), marked()[::-1]], -1))
    assert "holds a series of 2 volumes" in refusal(Segmented(root))
    data = Segmented(root, size=16, frame=1).load()
    assert data.images.equal(Nifti(root / "images", size=16, frame=1).load().images)


def test_a_real_head_with_its_bright_half_as_the_mask(tmp_path):
    whole = nibabel.load(REAL / "anatomical.nii")
    values = np.asarray(whole.dataobj)
    save(tmp_path / "images" / "head.nii", values, whole.affine)
    save(tmp_path / "masks" / "head_seg.nii", (values > np.median(values)).astype("f4"), whole.affine)
    data = Segmented(tmp_path, size=24, plane="volume").load()
    assert data.shape == (1, 24, 24, 24)
    assert read_volume(REAL / "anatomical.nii").voxels.median() < data.images[:, 0][data.masks == 1].mean()
    assert 0.3 < data.masks.double().mean() < 0.7


def test_dicom_files_with_masks(tmp_path):
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (20, 24), dtype=np.uint8)
        name = f"1.2.{number}"  # as scanners name them: what follows the last dot is no ending
        dicom(tmp_path / "images" / (name + (".dcm" if number else "")), pixels, PatientID=f"p{number // 2}")
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray((pixels > 99).astype("u1")).save(tmp_path / "masks" / f"{name}_mask.png")
    data = source_at(str(tmp_path), size=20).load()
    assert data.names == ("1.2.0", "1.2.1.dcm", "1.2.2.dcm")
    assert data.patients == ("p0", "p0", "p1")
    assert data.images[:, 0][data.masks == 1].min() > data.images[:, 0][data.masks == 0].max() - 1e-6


def test_a_dicom_file_of_several_frames_is_skipped_and_said(tmp_path):
    for name, frames in (("one", 1), ("two", 2)):
        pixels = np.random.default_rng(0).integers(0, 255, (frames, 20, 24), dtype=np.uint8)
        tags = {"PatientID": "p", "NumberOfFrames": frames} if frames > 1 else {"PatientID": "p"}
        dicom(tmp_path / "images" / f"{name}.dcm", pixels if frames > 1 else pixels[0], **tags)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray((pixels[0] > 99).astype("u1")).save(tmp_path / "masks" / f"{name}.png")
    data = Segmented(tmp_path).load()
    assert data.names == ("one.dcm",)
    assert data.skipped == ("two.dcm: holds 2 frames, but its mask has one: save each frame as a file",)


def refusal(source) -> str:
    with pytest.raises(InputError) as error:
        source.load()
    return str(error.value)


def test_masks_of_other_voxels_are_refused(tmp_path):
    root = pair(tmp_path / "d")
    mask = root / "masks" / "a.nii.gz"
    save(mask, bright(marked())[:-1])
    assert "image 'a.nii.gz' has 8 x 10 x 12 voxels, its mask 7 x 10 x 12: resample the mask" in refusal(
        Segmented(root)
    )
    save(mask, bright(marked()), np.diag([1.0, 1.0, 1.2, 1.0]))
    assert "image 'a.nii.gz' and its mask lie up to 2.4 mm apart, according to their affines" in refusal(
        Segmented(root)
    )
    moved = np.eye(4)
    moved[0, 3] = 5e-4  # as headers round
    save(mask, bright(marked()), moved)
    assert len(Segmented(root).load()) == 12


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        (marked() / 7, "its mask holds values that are not integers: save one class per voxel"),
        (np.where(marked() > 50, np.nan, 0), "its mask holds values that are not integers"),
        (-bright(marked(), "i2"), "its mask holds the value -2: classes are 0 or more"),
        (np.zeros((8, 10, 12), "u1"), "all masks are empty: they hold only 0, the background"),
        (np.arange(960, dtype="i2").reshape(8, 10, 12), "the masks have 960 different values: expected 2 to 32"),
        (np.stack([bright(marked())] * 2, -1), "holds a series of 2 volumes"),
        (np.zeros((0, 4, 4), "u1"), "has shape (0, 4, 4)"),
    ],
    ids=["fractions", "NaN", "negative", "empty", "a picture", "4-D", "no voxels"],
)
def test_masks_that_are_none_are_refused(tmp_path, mask, why):
    root = pair(tmp_path / "d")
    save(root / "masks" / "a.nii.gz", mask)
    assert why in refusal(Segmented(root))


def test_broken_files_are_skipped_with_their_pair(tmp_path):
    root = pair(pair(pair(tmp_path / "d"), "b"), "c")
    holes = marked()
    holes[1, 2, 3] = np.nan
    save(root / "images" / "b.nii.gz", holes)
    (root / "masks" / "c.nii.gz").write_bytes(b"")
    data = Segmented(root, plane="volume").load()
    assert data.names == ("a.nii.gz",)
    assert [line.split(": ")[0] for line in data.skipped] == ["b.nii.gz", "c.nii.gz"]
    assert "not finite" in data.skipped[0]
    assert data.skipped[1] == "c.nii.gz: empty file"


def test_pictures_and_volumes(tmp_path):
    root = pair(tmp_path / "d")
    Image.fromarray(np.zeros((9, 9), "u1")).save(root / "images" / "b.png")
    assert "1 image(s) have no mask with the same name" in refusal(Segmented(root))
    save(root / "masks" / "b.nii", bright(marked()))
    assert "are volumes and their masks pictures, or the reverse:" in refusal(Segmented(root))
    (root / "masks" / "b.nii").unlink()
    Image.fromarray(np.eye(9, dtype="u1")).save(root / "masks" / "b.png")
    assert "holds pictures and volumes" in refusal(Segmented(root, plane="volume"))
    assert len(Segmented(root).load()) == 13
    with pytest.raises(InputError, match="no plane 'axal'; did you mean 'axial'"):
        Segmented(root, plane="axal")
