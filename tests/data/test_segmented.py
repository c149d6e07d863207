"""Images with masks: folders and arrays, values, sizes, and refused input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from medpfl import InputError
from medpfl.data import ImageFolder, Segmented
from medpfl.data.choose import source_at
from medpfl.data.reading.masks import class_of


def made(root, count=4, sides=(20, 24), ending="_mask", values=(0, 255)):
    random = np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i in range(count):
        mask = np.zeros(sides, dtype=np.uint8)
        mask[4 : 8 + i, 6:12] = values[-1]
        if len(values) > 2:
            mask[12:14, 14:20] = values[1]
        picture = (random.random(sides) * 100 + mask * 0.5).astype(np.uint8)
        Image.fromarray(picture).save(root / "images" / f"{i}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i}{ending}.png")
    return root


@pytest.mark.parametrize("ending", ["", "_mask", "_segmentation", "_seg"])
def test_a_folder_of_images_beside_a_folder_of_masks(tmp_path, ending):
    root = made(tmp_path / "d", ending=ending)
    (root / "index.csv").write_text("file,patient_id\n0.png,a\n1.png,a\n")
    data = source_at(str(root), size=16).load()
    assert (data.shape, data.masks.shape, data.masks.dtype) == ((1, 16, 16), (4, 16, 16), torch.int64)
    assert data.masks.unique().tolist() == [0, 1]
    assert (data.labels == 1).all()
    assert data.classes == ("background", "structure 1")
    assert (data.names, data.patients) == (("0.png", "1.png", "2.png", "3.png"), ("a", "a", None, None))


@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_a_mask_goes_with_its_image(tmp_path, fit):
    """The image is its own mask: the mask is 1 exactly where the resized image is bright."""
    root = made(tmp_path / "d", 1, (40, 56), "")
    shape = np.zeros((40, 56), dtype=np.uint8)
    shape[10:30, 12:44] = 255
    for name in ("images", "masks"):
        Image.fromarray(shape).save(root / name / "0.png")
    data = Segmented(root, size=20, fit=fit).load()
    assert ((data.images[0, 0] > 0.5) == (data.masks[0] == 1)).all()
    assert 20 < data.masks.sum() < 380


def test_values_are_numbered_in_their_order_over_all_masks(tmp_path):
    data = Segmented(made(tmp_path / "d", values=(0, 7, 200)), size=20).load()
    assert data.classes == ("background", "structure 1", "structure 2")
    assert data.masks[0, 12:14].unique().tolist() == [0, 1]
    assert data.masks[0, 4:8].unique().tolist() == [0, 2]
    assert data.labels.tolist() == [2] * 4


def test_the_commonest_class_above_the_background():
    masks = torch.tensor([[[0, 0, 0, 1, 2, 2]], [[0, 0, 0, 0, 0, 0]], [[0, 0, 1, 1, 2, 0]]])
    assert class_of(masks).tolist() == [2, 0, 1]
    assert class_of(torch.zeros(2, 3, 3, dtype=torch.long)).tolist() == [0, 0]


def test_arrays_of_images_and_of_volumes(tmp_path):
    random = np.random.default_rng(0)
    pixels, masks = random.random((5, 12, 12, 3)).astype("f4"), random.integers(0, 3, (5, 12, 12), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels, masks=masks, patients=np.array([1, 1, 2, 2, 3]))
    data = source_at(str(tmp_path / "a.npz"), size=12).load()
    assert data.images.allclose(torch.from_numpy(pixels).movedim(-1, 1))
    assert data.masks.equal(torch.from_numpy(masks).long())
    assert data.patients == ("1", "1", "2", "2", "3")
    np.savez(tmp_path / "v.npz", images=random.random((2, 12, 12, 12)), masks=random.integers(0, 2, (2, 12, 12, 12)))
    data = Segmented(tmp_path / "v.npz", size=12).load()
    assert (data.shape, tuple(data.masks.shape)) == ((1, 12, 12, 12), (2, 12, 12, 12))


def test_a_limit_leaves_out(tmp_path):
    data = Segmented(made(tmp_path / "d", 6), limit=2).load()
    assert (len(data), len(data.masks), data.left_out) == (2, 2, 4)


def test_a_broken_file_is_skipped_with_its_pair(tmp_path):
    root = made(tmp_path / "d")
    (root / "masks" / "1_mask.png").write_bytes(b"no image")
    data = Segmented(root, size=16).load()
    assert data.names == ("0.png", "2.png", "3.png")
    assert data.skipped == ("1.png: not an image",)


def refusal(source):
    with pytest.raises(InputError) as error:
        source.load()
    return str(error.value)


def test_what_is_refused(tmp_path):
    assert "must hold a folder 'images' and a folder 'masks'" in refusal(Segmented(tmp_path))
    root = made(tmp_path / "d")
    (root / "masks" / "2_mask.png").rename(root / "masks" / "other.png")
    assert "1 image(s) have no mask with the same name" in refusal(Segmented(root))
    (root / "masks" / "other.png").rename(root / "masks" / "2_mask.png")
    Image.fromarray(np.zeros((9, 9), dtype=np.uint8)).save(root / "masks" / "2_mask.png")
    assert "image '2.png' has size (20, 24), but its mask has (9, 9)" in refusal(Segmented(root))
    noise = np.random.default_rng(0).integers(0, 255, (20, 24), dtype=np.uint8)
    Image.fromarray(noise).save(root / "masks" / "2_mask.png")
    assert "expected 2 to 32" in refusal(Segmented(root))
    empty = made(tmp_path / "e", values=(0, 0))
    assert "all masks are empty" in refusal(Segmented(empty))
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 9, 9)), masks=np.zeros((2, 9, 9)))
    assert "the masks have type float64" in refusal(Segmented(tmp_path / "a.npz"))
    np.savez(tmp_path / "b.npz", images=np.zeros((2, 9, 9)), masks=np.zeros((3, 9, 9), int))
    assert "expected (2, H, W) or (2, D, H, W)" in refusal(Segmented(tmp_path / "b.npz"))
    color = np.random.default_rng(0).integers(0, 2, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(color).save(made(tmp_path / "c", 1) / "masks" / "0_mask.png")
    assert "its mask is in color" in refusal(Segmented(tmp_path / "c"))


def test_class_folders_are_still_class_folders(tmp_path):
    for name in ("images", "benign"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((9, 9), dtype=np.uint8)).save(tmp_path / name / "0.png")
    assert isinstance(source_at(str(tmp_path)), ImageFolder)
