"""The support matrix: its page names registered parts, and a cell repeats the audit's result."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import pytest
import torch

from benchmarks import matrix
from medpfl import attacks, models
from medpfl.attacks import RGAP, WorstCase, iDLG
from medpfl.core.roles import Attack

pytestmark = pytest.mark.extra


def table(text: str) -> list[list[str]]:
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [[word.strip("`") for word in line] for line in lines if line[0] != "---"]


def test_the_page_names_only_what_there_is_and_can_be_made_again():
    """The page may lack newer parts: `python -m benchmarks matrix --new` adds them."""
    text = matrix.PAGE.read_text()
    head, *rows = table(text)
    assert set(head[3:]) <= set(attacks.__all__)
    assert {row[0] for row in rows} <= set(models.__all__)
    assert [row[1:3] for row in rows] == [list(plan) for plan in matrix.PLANS] * (len(rows) // len(matrix.PLANS))
    assert matrix.page(matrix.known(text)) == text
    reasons = {f"no: {number}" for number in re.findall(r"^(\d+)\. .{20}", text, re.MULTILINE)}
    said = {word for row in rows for word in row[3:]}
    assert said == {matrix.RUNS} | reasons


@pytest.mark.slow
def test_a_cell_says_what_the_audit_says():
    found = dict(matrix.cells(["MLP"], ["iDLG", "RGAP"], {}))
    no = "an analytic attack needs one gradient of one image, not an update of 2 images"
    for (_, algorithm, _, attack), said in found.items():
        assert said.startswith(no if attack == "RGAP" and algorithm == "FedAvg" else matrix.RUNS)
    head, *rows = table(matrix.page(found))
    assert head == ["Model", "Algorithm", "Mode", "iDLG", "RGAP"]
    assert [row[3:] for row in rows] == [["runs", "runs"]] * 2 + [["runs", "no: 1"]] * 2


@pytest.mark.slow
def test_only_what_is_new_is_run(tmp_path, monkeypatch):
    """An attack removed from a page is run again, and the page is as before; parts that no longer exist are omitted."""
    found = dict(matrix.cells(["MLP"], ["RGAP", "iDLG"], {}))
    assert matrix.known(matrix.page(found)) == found
    path, tried = tmp_path / "page.md", []
    old = {cell: said for cell, said in found.items() if cell[3] != "RGAP"}
    path.write_text(matrix.page({**old, ("Gone", "FedSGD", "train", "iDLG"): "runs"}))

    def outcome(model, attack, plan, data):
        tried.append(attack)
        return found[model, *next(names for names, own in matrix.PLANS.items() if own == plan), attack]

    monkeypatch.setattr(
        matrix, "registry", lambda package: ["MLP"] if package is models else {"iDLG": iDLG, "RGAP": RGAP}
    )
    monkeypatch.setattr(matrix, "outcome", outcome)
    said = list(matrix.lines(matrix.parsed(["--new", "--out", str(path)])))
    assert tried == ["RGAP"] * 4
    assert path.read_text() == matrix.page(found)
    assert [line.split()[:4] for line in said] == [["MLP", *plan, "RGAP"] for plan in matrix.PLANS]


def test_what_the_page_lacks_is_named_and_nothing_is_run(tmp_path, monkeypatch):
    """An ensemble is not named: its members have cells."""
    path, cell = tmp_path / "page.md", ("MLP", "FedSGD", "train", "iDLG")
    registered = {"Newer": iDLG, "iDLG": iDLG, "Ensemble": WorstCase}
    path.write_text(matrix.page({cell: "runs"}))
    monkeypatch.setattr(matrix, "registry", lambda package: ["MLP"] if package is models else registered)
    monkeypatch.setattr(matrix, "outcome", None)
    assert list(matrix.lines(matrix.parsed(["--missing", "--out", str(path)]))) == ["Newer"]
    assert matrix.known(path.read_text()) == {cell: "runs"}


@dataclass(frozen=True, repr=False)
class Lost(Attack):
    """An attack that ends at numbers that are not finite."""

    def __call__(self, seen, generator):
        found = iDLG(steps=1)(seen, generator)
        return replace(found, ended=("nonfinite",) * len(found.ended), guesses=torch.zeros_like(found.guesses))


@pytest.mark.slow
def test_a_flag_that_makes_guesses_useless_is_a_reason(monkeypatch):
    monkeypatch.setattr(matrix, "registry", lambda _: {"Lost": Lost})
    data = matrix.images_for("MLP")
    said = matrix.outcome("MLP", "Lost", matrix.PLANS["FedSGD", "train"], data)
    assert said.startswith("nonfinite: the attack ended with a value")


@pytest.mark.slow
@pytest.mark.parametrize(("model", "side"), [("LeNet", 32), ("DenseNet121", 64)])
def test_the_smallest_size_of_which_batch_norm_takes_one_image(model, side):
    data = matrix.images_for(model)
    assert data.shape == (1, side, side)
    assert data.masks is not None
    assert 0.3 < data.masks.double().mean() < 0.6
