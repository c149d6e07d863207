"""The standard evaluation: its settings, its line and checksum, and rows that must never change."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from medpfl import Evaluation, InputError, Reading, Run, evaluate
from medpfl.auditing.run import AuditCase
from medpfl.core.experiments import evaluation
from medpfl.core.experiments.evaluation import EDITIONS, Edition
from medpfl.evaluation.run import foresee_evaluation
from medpfl.models import LeNet

SMALL = Reading(size=16)


@pytest.fixture
def small(monkeypatch):
    """Make an edition that takes seconds."""
    monkeypatch.setitem(EDITIONS, "small", Edition("WorstCase(evaluations=100)", images=2))


def test_the_edition_is_what_was_published():
    """Never change this test: add another edition."""
    assert EDITIONS["standard-2026.1"] == Edition("WorstCase(evaluations=1000)", images=100, seed=0)
    assert list(EDITIONS)[-1] == evaluation.Evaluating.edition


@pytest.mark.usefixtures("small")
def test_a_line_can_be_quoted_and_its_checksum_follows_the_rows():
    one = evaluate("LeNet('idlg')", "samples", reading=SMALL, edition="small")
    (line,) = one.lines
    assert line.startswith(
        "small: LeNet(variant='idlg') with Samples(size=16), no defense: reconstructed 2 of 2 images"
    )
    assert one.checksum in line
    assert str(one) == line
    assert json.dumps(one.to_dict())
    first, *rest = one.report.rows
    ends = {}
    for digit in (1e-3, 1e-5):
        scores = {**first.scores, "ssim": (first.scores["ssim"] or 0) - digit}
        rows = [*rest, replace(first, scores=scores, date="2030-01-01", seconds=9.0)]
        ends[digit] = Evaluation(one.edition, replace(one.report, rows=rows)).checksum
    assert ends[1e-3] != one.checksum
    assert ends[1e-5] == one.checksum


@pytest.mark.usefixtures("small")
def test_a_line_tells_trained_weights_from_untrained_ones(tmp_path):
    from safetensors.torch import save_file

    network = LeNet("idlg").build((1, 16, 16), 4, seed=5)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    found = {}
    for weights in (None, tmp_path / "weights.safetensors"):
        one = evaluate("LeNet('idlg')", "samples", reading=SMALL, edition="small", weights=weights)
        found[weights is None] = re.search(r"\(weights (\w+) \((\w{12})\), ", one.lines[0]).groups()
    assert [found[True][0], found[False][0]] == ["untrained", "given"]
    assert found[True][1] != found[False][1]
    own = evaluate(network, "samples", reading=SMALL, edition="small").lines[0]
    assert f"(weights given ({found[False][1]}), " in own, "an object brings its weights"


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_defense_is_known_to_the_attack_and_has_a_line():
    found = evaluate("LeNet('idlg')", "samples", reading=SMALL, edition="small", defenses=["LaplaceNoise(scale=0.1)"])
    assert [cell.knows_defense for cell in found.report.summary][1:] == [True]
    assert "LaplaceNoise(scale=0.1): reconstructed none of 2 images" in found.lines[1]


@pytest.mark.parametrize(("options", "message"), [
    ({"edition": "standard-1999"}, "there is no edition 'standard-1999': choose standard-2026.1"),
    ({"run": Run(seed=3)}, "seed is 3, but the edition sets it"),
    ({"run": Run(memory=1.0)}, "memory is 1.0, but the edition sets it"),
    ({"run": Run(threads=2)}, "threads is 2, but the edition sets it"),
    ({"run": Run(isolate=True)}, "isolate is True, but the edition sets it"),
    ({"run": Run(minutes=9.0)}, "minutes is 9.0, but the edition sets it"),
])  # fmt: skip
def test_what_the_edition_sets_cannot_be_set(options, message):
    with pytest.raises(InputError, match=message):
        evaluate("LeNet('idlg')", "samples", **options)


def test_an_evaluation_never_splits_a_stack(monkeypatch):
    kept = []
    monkeypatch.setattr(AuditCase, "outlook", lambda case: kept.append(case.whole))
    foresee_evaluation(evaluation.Evaluating(data="samples", model="LeNet('idlg')"))
    assert kept == [True]


def test_what_the_edition_sets_is_said_where_one_looks():
    assert {name for name in evaluation.FIXED if name not in evaluate.__doc__} == set()


@pytest.mark.slow
def test_the_rows_of_an_edition_never_change(monkeypatch):
    """Never change these numbers: a stronger attack belongs to another edition. A smaller budget makes it quick."""
    monkeypatch.setitem(EDITIONS, "few", Edition("WorstCase(evaluations=150)", images=2))
    options = {"reading": Reading(size=12), "edition": "few", "defenses": ["LaplaceNoise(scale=0.003)"]}
    found = evaluate("ConvNet(width=4, depth=1)", "samples", **options)
    scores = [row.scores["ssim"] for row in found.report.rows]
    assert scores == pytest.approx([0.0, 0.0, 0.9885, 0.9945, 0.9497, 0.988], abs=0.01)
    assert [row.label_guess for row in found.report.rows][2:] == [1, 0, 1, 0]
