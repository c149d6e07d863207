"""Folders that hold sets, or parts of a set, are not sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medpfl.cli import main
from medpfl.core.errors import InputError
from medpfl.data import ImageFolder


@pytest.fixture
def draw(tmp_path):
    def drawn(*files: str) -> Path:
        for i, file in enumerate(files):
            path = tmp_path / "data" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(i).integers(0, 256, (12, 12), np.uint8)
            Image.fromarray(pixels).save(path)
        return tmp_path / "data"

    return drawn


NESTED = "brain/glioma/0.png", "brain/none/0.png", "skin/benign/0.png", "skin/malignant/0.png"


def test_a_folder_of_sets_with_tables_of_their_own(draw):
    root = draw(*NESTED, "few/a/0.png")
    (root / "brain" / "index.csv").write_text("file\nglioma/0.png\n")
    (root / "few" / "index.csv").write_text("file\na/0.png\n")
    with pytest.raises(InputError) as error:
        ImageFolder(root).load()
    assert str(error.value).endswith(f"each with class folders and index.csv: give '{root}/brain'")
    (root / "skin" / "index.csv").write_text("file\n")
    with pytest.raises(InputError, match=f"give '{root}/brain' or '{root}/skin'"):
        ImageFolder(root).load()
    (root / "index.csv").write_text("file\nbrain/glioma/0.png\n")
    assert ImageFolder(root).load().classes == ("brain", "few", "skin")


@pytest.mark.parametrize("names", [("train", "test"), ("Training", "Testing"), ("train", "val", "test"), ("train",)])
def test_the_parts_of_a_set(draw, names):
    root = draw(*(f"{name}/{inner}/0.png" for name in names for inner in ("benign", "malignant")))
    first = sorted(names)[0]
    with pytest.raises(InputError, match=f"holds splits of a data set, not classes: give '{root}/{first}'"):
        ImageFolder(root).load()
    assert ImageFolder(root / first).load().classes == ("benign", "malignant")


def test_what_may_be_sets_or_patients_is_said_on_the_terminal(draw, capsys):
    root = draw(*NESTED)
    (note,) = ImageFolder(root).load().notes
    assert note.startswith("Classes are the folders brain, skin; the folders inside them (benign, glioma,")
    assert note.endswith(f"If the inner folders are the classes, give '{root}/brain' or '{root}/skin'")
    words = ["--model", "MLP((4,))", "--attack", "RGAP", "--size", "12", "--images", "2", "--quiet", "--show-paths"]
    assert main(["audit", str(root), *words]) == 0
    assert f"note: {note}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "files",
    [
        ("benign/0.png", "malignant/0.png"),
        ("benign/p1/0.png", "benign/p2/0.png", "malignant/0.png"),
        ("benign/p1/0.png", "malignant/p2/0.png"),
        ("benign/0.png", "benign/p1/0.png", "benign/p2/0.png", "malignant/p3/0.png", "malignant/p4/0.png"),
        ("train/0.png", "test/0.png"),
    ],
)
def test_class_folders_are_left_alone(draw, files):
    data = ImageFolder(draw(*files)).load()
    assert data.notes == ()
    assert len(data) == len(files)


def test_a_table_beside_folders_of_patients_says_that_it_is_a_set(draw):
    root = draw(*NESTED)
    (root / "index.csv").write_text("file,patient_id\n")
    assert ImageFolder(root).load().notes == ()
