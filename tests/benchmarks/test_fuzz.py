"""The fuzzer damages files and detects forbidden failures, and every reader refuses files it cannot read."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from benchmarks import fuzz
from benchmarks.fuzz_files import Target, targets
from medpfl.data.images import LabelledImages

TARGETS = targets()


@pytest.mark.filterwarnings("ignore")  # of numpy, torch and nibabel about odd headers
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_read_or_refused(name):
    assert [fuzz.attempt(TARGETS[name], seed)[1] for seed in range(12)] == [""] * 12


@pytest.mark.slow
def test_whole_files_are_read(monkeypatch):
    monkeypatch.setattr(fuzz, "damaged", lambda content, _: content)
    refused = {name for name, target in TARGETS.items() if fuzz.attempt(target, 0)[0]}
    assert refused == {"dicom liver_1frame.dcm"}, "a segmentation is no picture"


def test_most_changes_change_something():
    content = bytes(range(256)) * 8
    made = [fuzz.damaged(content, np.random.default_rng(seed)) for seed in range(40)]
    assert sum(one != content for one in made) > 35
    assert made[3] == fuzz.damaged(content, np.random.default_rng(3))
    assert fuzz.damaged(b"", np.random.default_rng(0)) is not None


def images(value=0.5, names=("a",)):
    return LabelledImages(torch.full((1, 1, 8, 8), value), torch.zeros(1), ("a",), names, (None,))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("found", "what"),
    [
        (lambda _: 1 / 0, "ZeroDivisionError at test_fuzz.py"),
        (lambda _: time.sleep(9), "LateError"),
        (lambda _: images(float("nan")), "images that are not in [0, 1]"),
        (lambda _: images(1.1), "images that are not in [0, 1]"),
        (lambda _: images(names=()), "of different numbers"),
        (lambda _: images(), ""),
    ],
)
def test_what_may_not_come_of_a_file(monkeypatch, found, what):
    monkeypatch.setattr(fuzz, "PATIENCE", 1)
    refused, failure = fuzz.attempt(Target({"x": b"1"}, "x", found), 0)
    assert not refused
    assert what in failure
    assert bool(what) == bool(failure)
