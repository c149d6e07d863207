"""Several audits share one attack, whose budget is decided once."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from medpfl import Plan, Run, ThreatModel, Victims
from medpfl.attacks import WorstCase, iDLG
from medpfl.auditing import execution
from medpfl.auditing.forecast import budget
from medpfl.auditing.run import AuditCase
from medpfl.core.experiments.experiment import Experiment
from medpfl.federation import run as federation
from medpfl.training.leakage import leakage
from tests.auditing.audit_cases import some_images
from tests.flat import flat
from tests.training.training_cases import small

CASE = AuditCase(
    "MLP((6,))", some_images(4), (), (), Plan(), ThreatModel(), None, Victims(images=2), Experiment.criteria, Run()
)


@pytest.fixture
def timed(monkeypatch):
    """Count how often an evaluation is timed: it takes 6 ms for all victims, so that a minute allows 10,000."""
    found = []
    monkeypatch.setattr(budget, "_seconds", lambda scenario: found.append(scenario) or 0.006)
    return found


def test_attacks_that_are_named_are_kept(timed):
    named = ["iDLG(steps=3)", iDLG(steps=2)]
    assert execution.shared_attacks([replace(CASE, attacks=named), CASE]) is named
    assert not timed


def test_the_first_audit_decides_for_all(timed):
    cases = [replace(CASE, run=Run(minutes=0.05)), replace(CASE, run=Run(minutes=9.0))]
    assert execution.shared_attacks(cases) == ["WorstCase(evaluations=500)"]
    assert len(timed) == 1


def test_no_minutes_mean_analytic_attacks_alone(timed):
    for minutes in (Run(minutes=0), Run(minutes=0, force=True)):
        assert execution.shared_attacks([replace(CASE, run=minutes), CASE]) == ["WorstCase(evaluations=0)"]
    assert not timed


def test_searches_run_if_another_audit_may_need_them(timed, monkeypatch):
    monkeypatch.setattr(budget, "may_explain", lambda *_: True)
    short = replace(CASE, run=Run(minutes=0.001))
    assert execution.shared_attacks([short]) == ["WorstCase(evaluations=0)"]
    assert execution.shared_attacks([short, CASE]) == ["WorstCase(evaluations=100)"]


@pytest.mark.parametrize("force", [False, True])
def test_the_budget_in_any_run_directory_is_kept_unless_it_is_to_begin_anew(timed, tmp_path, force):
    cases = [replace(CASE, run=Run(out=tmp_path / name, force=force, minutes=0.05)) for name in "ab"]
    (tmp_path / "b").mkdir()
    known = {"identity": {"attacks": [repr(WorstCase(evaluations=300))]}}
    (tmp_path / "b" / "run.json").write_text(json.dumps(known))
    assert execution.shared_attacks(cases) == [f"WorstCase(evaluations={500 if force else 300})"]
    assert len(timed) == force


@pytest.mark.slow
def test_the_audits_of_a_trainings_rounds_have_one_attack(monkeypatch, tmp_path):
    small(out=tmp_path / "t")
    asked = []
    monkeypatch.setattr(execution, "standard_attack", lambda scenario, also: asked.append(scenario) or iDLG(steps=2))
    found = flat(leakage, tmp_path / "t", some_images(8), [0, 3], images=2)
    assert len(asked) == 1
    assert {cell.attack for report in found.reports.values() for cell in report.summary} == {"iDLG(steps=2)"}


def test_the_audits_of_records_ask_for_it(monkeypatch):
    """What a federation's audits run is decided from all of them, and given to each."""
    audits = {"one": CASE, "two": replace(CASE, run=Run(seed=1))}
    todo = SimpleNamespace(entries=list(audits))
    case = SimpleNamespace(of=lambda entry, out: audits[entry])
    monkeypatch.setattr(federation, "shared_attacks", lambda given: ["iDLG()"] if given == [*audits.values()] else [])
    made = federation._cases(todo, case, None)  # type: ignore[arg-type]
    assert [(entry, one.attacks, one.run) for entry, one in made] == [
        ("one", ["iDLG()"], Run()),
        ("two", ["iDLG()"], Run(seed=1)),
    ]
