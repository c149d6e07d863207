"""The time of an audit's jobs is told before they run, and telling it changes no row."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest

import medpfl
from medpfl import InputError, Run, Victims
from medpfl.attacks import RGAP
from medpfl.auditing.forecast import costs
from medpfl.auditing.run import AuditCase
from medpfl.core.experiments.experiment import Experiment
from medpfl.core.threat import HONEST
from medpfl.runs.estimate import Estimate

pytestmark = pytest.mark.usefixtures("probes")

OPTIONS = {"attacks": ["iDLG(steps=4)", "RGAP"], "defenses": ["LaplaceNoise(scale=0.01)"]}
SMALL = Victims(images=3, size=16)


def bare(report: medpfl.Report) -> list[dict]:
    """Return the rows without what differs between two runs: times, dates, and study indices."""
    own = ("seconds", "date", "image", "patient", "nearest_image")
    return [{name: value for name, value in row.to_dict().items() if name not in own} for row in report.rows]


@pytest.mark.slow
@pytest.mark.usefixtures("no_pages")
def test_rows_are_the_same_with_and_without_an_estimate(capsys, tmp_path):
    shown, silent = (
        medpfl.audit("LeNet('idlg')", victims=SMALL, run=Run(progress=on, out=tmp_path / str(on)), **OPTIONS)
        for on in (True, False)
    )
    assert bare(shown) == bare(silent)
    told = capsys.readouterr().err
    assert "18 reconstructions and 6 controls, by 2 attacks in 8 jobs; the time of RGAP is known after" in told
    identities = [json.loads((tmp_path / str(on) / "run.json").read_text())["identity"] for on in (True, False)]
    assert identities[0] == identities[1]


@pytest.mark.slow
def test_the_default_number_of_images_is_that_number_in_the_identity(folder, tmp_path):
    given = {"attacks": ["iDLG(steps=2)"], "run": Run(out=tmp_path / "runs" / "a")}
    medpfl.audit("LeNet('idlg')", folder, victims=Victims(size=16), **given)
    rows = (tmp_path / "runs/a/share/findings.jsonl").read_bytes()
    medpfl.audit("LeNet('idlg')", folder, victims=Victims(size=16, images=10), **given)
    assert (tmp_path / "runs/a/share/findings.jsonl").read_bytes() == rows, "the same run, which is done"
    assert json.loads((tmp_path / "runs/a/run.json").read_text())["identity"]["images"] == 10


@pytest.mark.slow
def test_a_finished_audit_says_so_and_times_nothing(capsys, tmp_path, monkeypatch):
    run = Run(progress=True, out=tmp_path / "a")
    given = {"victims": SMALL, "attacks": ["iDLG(steps=2)"]}
    medpfl.audit("LeNet('idlg')", run=run, **given)
    monkeypatch.setattr(costs, "_seconds", lambda *_: pytest.fail("an attack was run"))
    for once_more in (run, replace(run, title="With other pages")):
        capsys.readouterr()
        medpfl.audit("LeNet('idlg')", run=once_more, **given)
        assert capsys.readouterr().err == "all 2 jobs are done already\n"


def case(**options) -> AuditCase:
    given = {"attacks": ["iDLG(steps=25)"], "defenses": [], "victims": SMALL, "run": Run(), **options}
    model, plan, criteria = "LeNet('idlg')", Experiment.plan, Experiment.criteria
    return AuditCase(model, "samples", plan=plan, threat=HONEST, weights=None, criteria=criteria, **given)


@pytest.mark.slow
def test_a_job_without_a_defense_is_expected_to_end_early():
    steps = {step.what: step for step in case(defenses=["LaplaceNoise(scale=0.01)"]).outlook().steps}
    exact, noisy = (steps[f"iDLG(steps=25) x {spec}"].seconds for spec in ("NoDefense()", "LaplaceNoise(scale=0.01)"))
    assert exact == pytest.approx(costs._EARLY * noisy)
    assert noisy > 0


@pytest.mark.slow
@pytest.mark.usefixtures("shared")
def test_a_users_own_attack_is_not_run_for_an_estimate(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom medpfl.core.roles import Attack\n"
        "@dataclass(frozen=True, repr=False)\nclass Mine(Attack):\n"
        '    """Attack that must not run."""\n'
        "    steps: int = 5\n    def __call__(self, seen, generator):\n        raise SystemExit('it ran')\n"
    )
    own = f"{tmp_path}/mine.py:Mine()"
    for isolate in (None, False):
        plan = case(attacks=[own], run=Run(isolate=isolate)).outlook()
        assert plan.seconds is None
        assert "unknown time" in plan.lines()[-1]
    both = case(attacks=[own, "iDLG(steps=2)"], run=Run(isolate=False)).outlook()
    assert both.seconds is not None, "as much as the others take, until it has run"


@pytest.mark.slow
@pytest.mark.parametrize("force", [False, True])
def test_a_plan_writes_nothing_and_makes_no_key(tmp_path, force):
    out = tmp_path / "runs" / "a"
    medpfl.audit("LeNet('idlg')", attacks=["iDLG(steps=2)"], victims=SMALL, run=Run(out=out))
    next(out.parent.glob("*key*.json")).unlink()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with nullcontext() if force else pytest.raises(InputError, match=r"the key for .* is missing"):
        case(attacks=["iDLG(steps=2)"], run=Run(out=out, force=force)).outlook()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_time_of_all_steps_follows_from_a_few(monkeypatch):
    """Runs with 8 and 32 steps take 1.8 and 4.2 seconds: 0.1 a step, and one second besides."""
    taken = {8: 1.8, 32: 4.2}
    monkeypatch.setattr(costs, "_SLOW", 2.0)

    class Timed:
        def timed(self, job, attack):
            return taken[attack.steps]

    from medpfl.attacks import iDLG

    whole = costs._of_steps(Timed(), None, iDLG(steps=1000, restarts=3), 8)
    assert whole == pytest.approx(3 * (1.0 + 0.1 * 1000 * costs._USUAL))


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["RGAP", "RGAP(steps=50)"])
def test_an_attack_that_computes_its_guess_runs_once_for_each_victim_and_never_for_a_probe(monkeypatch, attack):
    ran = []
    call = RGAP.__call__

    def counted(self, seen, generator):
        ran.append(len(seen))
        return call(self, seen, generator)

    monkeypatch.setattr(RGAP, "__call__", counted)
    medpfl.audit("LeNet('idlg')", attacks=[attack], victims=SMALL, run=Run(progress=True))
    assert ran == [3, 3], "the control, and the images"
    ran.clear()
    plan = case(attacks=[attack]).outlook()
    assert ran == [1], "a plan runs no job that could tell, so it runs one victim, once"
    assert plan.seconds is not None


@pytest.mark.slow
def test_searches_are_timed_although_another_attack_is_not(capsys):
    medpfl.audit("LeNet('idlg')", attacks=["iDLG(steps=2)"], victims=SMALL, run=Run(progress=True))
    assert "by 1 attack in 2 jobs, in about" in capsys.readouterr().err


def test_an_estimate_needs_no_job():
    assert Estimate({}).left() == 0
