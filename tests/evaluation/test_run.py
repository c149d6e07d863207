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
        "small: LeNet(variant='idlg') with Samples(size=16) (59 images of 1 x 16 x 16, 4 classes of 14, 14, 17, 14), "
        "no defense: reconstructed 2 of 2 images"
    )
    assert line.endswith(f", checksum {one.checksums['NoDefense()']})")
    assert str(one) == line
    assert json.dumps(one.to_dict())
    first, *rest = one.report.rows
    ends = {}
    for digit in (1e-3, 1e-5):
        scores = {**first.scores, "ssim": (first.scores["ssim"] or 0) - digit}
        rows = [*rest, replace(first, scores=scores, date="2030-01-01", seconds=9.0)]
        ends[digit] = Evaluation(one.edition, replace(one.report, rows=rows)).checksums
    assert ends[1e-3] != one.checksums
    assert ends[1e-5] == one.checksums
    _checksums_belong_to_lines(one)


def _checksums_belong_to_lines(one):
    """A line can be checked alone: other defenses and the alias do not count, and all that it states does."""
    report = one.report
    more = replace(
        report,
        rows=[*report.rows, *(replace(row, defense="Other()") for row in report.rows)],
        summary=[*report.summary, *(replace(cell, defense="Other()") for cell in report.summary)],
        settings=replace(report.settings, about={"alias": "mri-2026"}),
    )
    two = Evaluation(one.edition, more)
    assert two.checksums["NoDefense()"] == one.checksums["NoDefense()"] != two.checksums["Other()"]
    assert two.checksums["Other()"] in two.lines[1]
    assert ' with "mri-2026" (Samples(size=16): 59 images of 1 x 16 x 16, 4 classes of ' in two.lines[0]
    settings = report.settings
    for other in (
        replace(settings, experiment={**settings.experiment, "plan": "Plan(batch_size=4)"}),
        replace(settings, experiment={**settings.experiment, "data": "ImageFolder(size=16)"}),
        replace(settings, data={**settings.data, "classes": {"class 0": 30, "class 1": 29}}),
        replace(settings, model={**settings.model, "weights": "0" * 16}),
    ):
        assert Evaluation(one.edition, replace(report, settings=other)).checksums != one.checksums
    assert Evaluation("another", report).checksums != one.checksums
    many = {f"class {i}": i + 1 for i in range(100)}
    assert (
        "100 classes of 1 to 100)"
        in Evaluation(
            one.edition, replace(report, settings=replace(settings, data={**settings.data, "classes": many}))
        ).lines[0]
    )


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
