"""Data given by a path with parentheses, by a home directory, or without a path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medpfl import Cohort, Reading
from medpfl.core.errors import InputError
from medpfl.data import ImageFolder
from medpfl.inputs.parts import data_of, is_record, source_of
from medpfl.inputs.spelling import check_words
from medpfl.training.splits import splits_of

EIGHT = Reading(size=8)

NAMES = ["data (2)", "data(2)", "Dicom(x)", "a/b (c)/d"]


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fill(folder: Path) -> Path:
    for i in range(8):
        path = folder / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (12, 12), np.uint8)).save(path)
    return folder


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("start", ["", "~/", "{home}/"])
def test_a_folder_with_parentheses_is_a_folder(home, name, start):
    fill(home / name)
    given = start.format(home=home) + name
    check_words(given)
    assert isinstance(source_of(given, EIGHT), ImageFolder)
    assert len(data_of(given, EIGHT).images) == 8
    assert splits_of(given, Cohort(size=8, holdout=4), 0).found.source == "ImageFolder(size=8, limit=1000000000)"


@pytest.mark.parametrize(
    "name", ["no such (folder)", "in/no such (folder)", "~/data (2)", "data (2)", "data(2)", "x" * 5000]
)
def test_of_a_path_that_is_not_there_it_is_said(home, name):
    for check in (check_words, lambda data: source_of(data, EIGHT)):
        with pytest.raises(InputError, match="there is no folder or record '"):
            check(name)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("Dicm('a')", "did you mean 'Dicom'"),
        ("Dicom(", "is not a spec"),
        ("Dicom('a'", "is not a spec"),
        ("MedMNIST(path='a (1).npz', splt='train')", "did you mean 'split'"),
    ],
)
def test_a_spec_with_a_mistake_is_still_a_spec(home, spec, message):
    with pytest.raises(InputError, match=message):
        source_of(spec, EIGHT)


def test_a_long_spec_is_a_spec(home):
    spec = f"ImageFolder('{'x' * 3000}')"
    check_words(spec)
    assert isinstance(source_of(spec, EIGHT), ImageFolder)


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "a\0b"])
def test_what_is_no_path(home, name):
    for check in (check_words, lambda data: source_of(data, EIGHT)):
        with pytest.raises(InputError, match=r"of an unknown user|holds a null byte"):
            check(name)
    assert not is_record(name)
