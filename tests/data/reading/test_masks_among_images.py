"""Masks among the images are left out and reported; images that only look like masks are kept."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from medpfl.core.errors import InputError
from medpfl.data import ImageFolder, Nifti, Segmented
from medpfl.data.choose import source_at


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24), np.uint8)).save(path)
    return path


def mask(path: Path, values: tuple[int, ...] = (0, 255)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((24, 24), np.uint8)
    for i, value in enumerate(values):
        pixels[4 * i : 4 * i + 8, 6:18] = value
    Image.fromarray(pixels).save(path)
    return path


def volume(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).random((9, 9, 9)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    return path


def labels(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((9, 9, 9), np.uint8)
    values[2:5, 2:5, 2:5] = 2
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    return path


@pytest.mark.parametrize(
    ("image", "own"),
    [
        ("{c}/x ({i}).png", "{c}/x ({i})_mask.png"),
        ("{c}/x ({i}).png", "{c}/x ({i})_mask_1.png"),
        ("{c}/x{i}.jpg", "{c}/x{i}_seg.png"),
        ("{c}/x{i}.png", "{c}/x{i}_segmentation.jpg"),  # which blurs it
        ("{c}/x{i}.png", "{c}/x{i}-GT.bmp"),
        ("{c}/image_{i}.png", "{c}/mask_{i}.png"),
        ("{c}/images/x{i}.png", "{c}/masks/x{i}.png"),
        ("{c}/x{i}.png", "{c}/labels/x{i}.png"),
        ("{c}/x{i}.png", "masks/{c}/x{i}.png"),
    ],
)
def test_masks_among_pictures_are_left_out(tmp_path, image, own):
    for i in range(3):
        for c in ("benign", "malignant"):
            picture(tmp_path / image.format(c=c, i=i), 7 * i + len(c))
            mask(tmp_path / own.format(c=c, i=i))
    data = ImageFolder(tmp_path).load()
    assert data.classes == ("benign", "malignant")
    assert set(data.names) == {image.format(c=c, i=i) for i in range(3) for c in ("benign", "malignant")}
    (note,) = [note for note in data.notes if "mask" in note]
    assert note.startswith("Left out 6 mask files (names such as ")
    assert "<picture>" in note
    assert "x0" not in note
    assert "folders named 'images' and 'masks'" in note


def test_one_mask_and_masks_of_several_classes(tmp_path):
    for c in ("a", "b"):
        picture(tmp_path / c / "1.png")
    mask(tmp_path / "a" / "1_mask.png", (1, 2, 3))
    data = ImageFolder(tmp_path).load()
    assert len(data) == 2
    assert data.notes[0].startswith("Left out 1 mask file (names such as <picture>_mask.png).")


def test_what_is_named_as_a_mask_and_is_a_picture_counts_and_is_said(tmp_path):
    for c in ("a", "b"):
        picture(tmp_path / c / "1.png")
    picture(tmp_path / "a" / "1_seg.png", 5)
    data = ImageFolder(tmp_path).load()
    assert data.names == ("a/1.png", "a/1_seg.png", "b/1.png")
    assert (
        "Counted 1 file named like masks (names such as <picture>_seg.png) as images: too many values" in data.notes[0]
    )


def test_masks_of_no_picture_are_the_pictures(tmp_path):
    for c in ("a", "b"):
        mask(tmp_path / c / "1_mask.png")
    mask(tmp_path / "a" / "10.png")  # 1_mask is none of 10
    data = ImageFolder(tmp_path).load()
    assert data.names == ("a/10.png", "a/1_mask.png", "b/1_mask.png")
    assert data.notes == ()


@pytest.mark.parametrize(("images", "masks"), [("images", "labels"), ("imagesTr", "labelsTr"), ("img", "gt")])
def test_folders_of_pictures_and_of_their_masks_are_no_classes(tmp_path, images, masks):
    for i in range(2):
        picture(tmp_path / images / f"{i}.png", i)
        mask(tmp_path / masks / f"{i}.png")
    with pytest.raises(InputError) as error:
        ImageFolder(tmp_path).load()
    assert f"holds folders of images and masks ({images}, {masks}), not classes" in str(error.value)
    assert f"To audit only the images, give '{tmp_path / images}'" in str(error.value)


@pytest.fixture
def decathlon(tmp_path) -> Path:
    for i in range(3):
        volume(tmp_path / "imagesTr" / f"case_{i}.nii.gz", i)
        volume(tmp_path / "imagesTs" / f"case_{i + 9}.nii.gz", i)
        labels(tmp_path / "labelsTr" / f"case_{i}.nii.gz")
    (tmp_path / "dataset.json").write_text("{}")
    return tmp_path


def test_decathlon_folders_are_images_with_masks(decathlon):
    source = source_at(str(decathlon), size=8)
    assert isinstance(source, Segmented)
    data = source.load()
    assert data.classes == ("background", "structure 1")
    assert set(data.patients) == {f"case_{i}.nii.gz" for i in range(3)}
    assert data.masks is not None
    assert data.masks.max() == 1
    assert data.notes == ("Left out 3 images in 'imagesTs', which have no masks.",)


def test_channels_of_nnunet_are_of_one_patient(tmp_path):
    for i in range(2):
        labels(tmp_path / "labelsTr" / f"case_{i}.nii.gz")
        for channel in range(2):
            volume(tmp_path / "imagesTr" / f"case_{i}_000{channel}.nii.gz", i + channel)
    data = Segmented(tmp_path, plane="volume").load()
    assert data.names == tuple(f"case_{i}_000{c}.nii.gz" for i in range(2) for c in range(2))
    assert data.patients == ("case_0.nii.gz",) * 2 + ("case_1.nii.gz",) * 2


def test_nifti_takes_no_labels_for_images_and_no_parts_for_classes(decathlon):
    data = Nifti(decathlon, plane="volume", size=8).load()
    assert {name.partition("/")[0] for name in data.names} == {"imagesTr", "imagesTs"}
    assert data.classes == ("no label", "other")
    assert data.notes[0].startswith("Left out 3 mask files (names such as labelsTr/<picture>.nii.gz).")


@pytest.mark.parametrize(
    ("image", "own"),
    [
        ("p{i}/p{i}_flair.nii.gz", "p{i}/p{i}_seg.nii.gz"),
        ("p{i}/imaging.nii.gz", "p{i}/segmentation.nii.gz"),
        ("volume-{i}.nii", "segmentation-{i}.nii"),
        ("sub-{i}/anat/sub-{i}_T1w.nii.gz", "sub-{i}/anat/sub-{i}_desc-brain_mask.nii.gz"),
        ("sub-{i}/anat/sub-{i}_T1w.nii.gz", "sub-{i}/anat/sub-{i}_dseg.nii.gz"),
    ],
)
def test_masks_among_volumes_are_left_out(tmp_path, image, own):
    for i in range(2):
        volume(tmp_path / image.format(i=i), i)
        labels(tmp_path / own.format(i=i))
    data = Nifti(tmp_path, plane="volume").load()
    assert data.names == tuple(image.format(i=i) for i in range(2))
    assert data.notes[0].startswith("Left out 2 mask files")
    assert "sub-" not in data.notes[0]


def test_parts_of_a_set_of_volumes_with_class_folders_are_refused(tmp_path):
    for part in ("train", "test"):
        for c in ("sick", "well"):
            volume(tmp_path / part / c / f"{part}{c}.nii.gz")
    with pytest.raises(InputError, match=f"holds splits of a data set, not classes: give '{tmp_path}/test'"):
        Nifti(tmp_path).load()
    assert Nifti(tmp_path, labels="folders", plane="volume").load().classes == ("test", "train")


def test_masks_without_an_image_and_labels_of_a_table_are_said(tmp_path):
    for i in range(2):
        picture(tmp_path / "images" / f"{i}.png", i)
        mask(tmp_path / "masks" / f"{i}.png")
    mask(tmp_path / "masks" / "9.png")
    (tmp_path / "images" / "x.webp").touch()
    (tmp_path / "index.csv").write_text("file,label\n0.png,a\n1.png,b\n")
    notes = Segmented(tmp_path).load().notes
    assert notes[0] == "Left out 1 mask without an image of the same name."
    assert notes[1].startswith("Left out 1 file in other formats (1 .webp).")
    assert notes[2].startswith("The labels in index.csv are not used")
