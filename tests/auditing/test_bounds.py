"""Bounds in an audit: which settings have one, what it covers, and where the measured rates lie."""

from __future__ import annotations

import json
import shutil
import sys

import pytest

from medpfl import InputError, Plan, Run, ThreatModel, audit, cli
from medpfl.auditing.privacy.bounds import bounded
from medpfl.auditing.report import reread
from medpfl.core.privacy.tradeoff import Mechanism
from medpfl.judging.types import Cell, Rate, StatedMechanism
from tests.flat import flat

pytestmark = pytest.mark.slow  # they share a fixture that takes seconds

MODEL = "MLP(hidden=(6,), activation='sigmoid')"
SMALL = {"attacks": ["iDLG(steps=2)"], "images": 4, "size": 16}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("bounds") / "run"
    plan = Plan("FedAvg", 2, 4, sampling="poisson")
    specs = ["DPSGD(clip=1.0, noise=1.0)", "ClientDP(noise=0.5)", "GaussianNoise(scale=0.1)", "DPSGD() | Mixup()"]
    return out, flat(audit, MODEL, defenses=specs, plan=plan, **SMALL, run=Run(out=out))


@pytest.mark.slow
def test_dp_settings_have_a_bound_over_the_round_and_no_other(found):
    cells = {cell.defense: cell for cell in found[1].summary}
    assert [spec for spec, cell in cells.items() if cell.bound is not None] == [
        "DPSGD(clip=1.0, noise=1.0)",
        "ClientDP(clip=1.0, noise=0.5)",
        next(spec for spec in cells if "Mixup" in spec),
    ]
    records, client, mixed = (cell.bound for cell in cells.values() if cell.bound is not None)
    assert records.mechanisms == (StatedMechanism(unit="image", noise=1.0, rate=0.5, steps=2),)
    assert client.mechanisms == (StatedMechanism(unit="client", noise=0.5, rate=1.0, steps=1),)
    assert records.rounds == 1
    for kappa, bound in client.curve:
        assert bound == Mechanism(0.5).bound(kappa)
    assert mixed.gap == "another part changes the input of its steps"
    assert mixed.curve == []


@pytest.mark.slow
def test_the_marks_are_at_what_was_guessed_without_the_update(found):
    for cell in found[1].summary:
        bound = cell.bound
        if bound is None or bound.gap:
            continue
        (one,) = bound.mechanisms
        seen = Mechanism(one.noise, one.rate, one.steps)
        mark = bound.identified
        assert mark.kappa == max(cell.chance, cell.identified_random_update.value)
        assert mark.bound == pytest.approx(seen.bound(mark.kappa))
        guessed = max(r.value for r in (cell.asr_mean_image, cell.asr_nearest, cell.asr_random_update))
        assert (bound.asr.kappa, bound.asr.kappa_high > guessed) == (guessed, True)
        assert bound.asr.bound_high == pytest.approx(seen.bound(bound.asr.kappa_high))


@pytest.mark.slow
def test_of_several_private_parts_the_least_bound_at_each_kappa_holds(monkeypatch):
    plan, specs = Plan("FedAvg", 2, 16, sampling="poisson"), ["DPSGD(noise=0.55) | ClientDP(noise=1.0)"]
    options = {**SMALL, "images": 16, "defenses": specs, "plan": plan, "naive": True}
    both = flat(audit, MODEL, **options).summary[1].bound
    records, client = Mechanism(0.55, 0.125, 8), Mechanism(1.0)
    assert [one.unit for one in both.mechanisms] == ["image", "client"]
    for kappa, bound in both.curve:
        assert bound == min(records.bound(kappa), client.bound(kappa))
    lower = {records.bound(kappa) < client.bound(kappa) for kappa, _ in both.curve if 0 < kappa < 1}
    assert lower == {True, False}, "which of them is lower depends on kappa"
    monkeypatch.setattr("medpfl.core.privacy.tradeoff._composed", _unable)
    alone = flat(audit, MODEL, **options).summary[1].bound
    assert [one.unit for one in alone.mechanisms] == ["client"]
    assert alone.gap is None


def _unable(*_: object) -> None:
    raise InputError("no accountant")


@pytest.mark.slow
def test_files_hold_it_and_a_page_that_is_made_again_needs_no_accountant(found, monkeypatch):
    out, report = found
    assert json.loads((out / "share/summary.json").read_text()) == [cell.to_dict() for cell in report.summary]
    page = (out / "share/report.html").read_text()
    assert page.count('id="bound-') == page.count('id="bound-asr') + page.count('id="bound-identified')
    assert "Measured success beside the bound" in page
    assert "ceiling" not in page
    monkeypatch.setattr("medpfl.core.privacy.tradeoff._composed", None)
    assert [cell.to_dict() for cell in reread(out).summary] == [cell.to_dict() for cell in report.summary]


def test_bounds_of_another_version_are_refused_with_what_to_do(found, tmp_path, capsys):
    shutil.copytree(found[0], tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    run = json.loads(path.read_text())
    for own in run["settings"]["bounds"].values():
        own.update((own.pop("mechanisms", None) or [{}])[0])  # as it was kept before
    path.write_text(json.dumps(run))
    assert cli.main(["report", str(tmp_path / "run")]) == 2
    assert "made by another version of MedPFL, whose success bounds" in capsys.readouterr().err


@pytest.mark.slow
def test_less_noise_a_better_reference_and_nothing_a_perfect_one():
    specs = ["DPSGD(noise=0.0001)", "DPSGD(noise=100.0)"]
    cells = [
        cell.bound.no_prior
        for cell in flat(audit, MODEL, defenses=specs, threat=ThreatModel(naive=True), **SMALL).summary[1:]
    ]
    assert cells[0] == {"asr": 1.0, "identified": 1.0}
    assert cells[1]["asr"] == 0
    assert cells[1]["identified"] < 0.5


@pytest.mark.slow
def test_statistics_that_are_sent_leave_no_bound():
    model = "ConvNet(width=4, depth=1, norm='batch')"
    cells = flat(
        audit, model, defenses=["ClientDP()"], plan=Plan(batch_size=2), threat=ThreatModel(naive=True), **SMALL
    ).summary
    assert "batch-norm statistics" in cells[1].bound.gap
    covered = Plan(batch_size=2, sends=("num_samples",))
    assert (
        flat(audit, model, defenses=["ClientDP()"], plan=covered, threat=ThreatModel(naive=True), **SMALL)
        .summary[1]
        .bound.gap
        is None
    )


@pytest.mark.slow
def test_without_the_extra_samples_say_what_to_install(monkeypatch):
    for name in ("dp_accounting", "dp_accounting.pld"):
        monkeypatch.setitem(sys.modules, name, None)
    plan = Plan("FedAvg", 2, 4, sampling="poisson")
    cell = flat(
        audit, MODEL, defenses=["DPSGD()", "ClientDP()"], plan=plan, threat=ThreatModel(naive=True), **SMALL
    ).summary
    assert "pip install 'medpfl[dp]'" in cell[1].bound.gap
    assert cell[2].bound.identified.bound is not None


def test_a_summary_without_bounds_stays_as_it_is():
    cells = [Cell(attack="iDLG()", defense="NoDefense()", asr=Rate(1.0))]
    assert bounded(cells, {}) == cells
