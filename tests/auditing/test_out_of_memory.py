"""A stack that runs out of memory is attacked in halves, and rows follow from how it was split."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import medpfl
from medpfl import Attack, Criteria, InputError, Plan, Run, ThreatModel, Victims
from medpfl.attacks import iDLG
from medpfl.auditing.report import reread
from medpfl.auditing.run import AuditCase
from medpfl.auditing.store import AUDIT, Store
from medpfl.core.errors import OutOfMemoryError
from medpfl.core.experiments.experiment import Experiment
from medpfl.runs.directory import RunDirectory, known_in
from medpfl.runs.jobs import JobKey
from tests.auditing.audit_cases import plain, some_images

DEFENSE = "LaplaceNoise(scale=0.01)"


@dataclass(frozen=True, repr=False)
class Hungry(Attack):
    """Attacks those who know a defense only if no more victims are together than a file says, and it says "go"."""

    place: str = ""

    def __call__(self, seen, generator):
        """Attack."""
        most, end = Path(self.place).read_text().split()
        if seen.views[0].channel is not None:
            if len(seen) > int(most):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
            if end == "end":
                os.kill(os.getpid(), signal.SIGKILL)
        return iDLG(steps=2)(seen, generator)


@pytest.fixture
def audited(tmp_path):
    place = tmp_path / "limit"

    def audit(limit: str, run: Run = Experiment.run, **options):
        place.write_text(limit)
        given = {"defenses": [DEFENSE], "victims": Victims(images=7, size=16), **options}
        return medpfl.audit("MLP((6,))", some_images(8), attacks=[Hungry(str(place))], run=run, **given)

    return audit


def rows(report):
    return plain(report.rows, "image", "attack")


def split(rows):
    return [row for row in rows if "defense" in row["grants"]]


def others(rows):
    return [row for row in rows if "defense" not in row["grants"]]


def test_a_stack_that_runs_out_of_memory_is_halved_and_the_others_stay(audited, capsys):
    whole, halved = (rows(audited(limit)) for limit in ("9 go", "3 go"))
    assert capsys.readouterr().err.count("a stack of victims ran out of memory, and is attacked in halves") == 1
    assert others(halved) == others(whole)
    # 7 victims, 4, and then at most 2
    assert [row["engine"] for row in split(halved)] == ["vmap of 2"] * 6 + ["vmap of 1"]
    places = ("victim", "position", "stack", "label")
    assert [[row[k] for k in places] for row in halved] == [[row[k] for k in places] for row in whole]
    assert split(halved) != split(whole)
    assert halved == rows(audited("2 go")), "rows follow from the parts, not from the memory"


@pytest.mark.slow
def test_progress_is_shown_through_a_split(audited):
    assert rows(audited("3 go", Run(progress=True))) == rows(audited("3 go"))


@pytest.mark.slow
def test_the_page_says_it(audited, tmp_path):
    out = tmp_path / "runs" / "a"
    report = audited("2 go", Run(out=out))
    (note,) = [note for note in report.settings.notes if "ran out of memory" in note]
    assert f"x {DEFENSE}: 1 stack of victims ran out of memory and was split, so that at most 2 victims were" in note
    assert reread(out).settings.notes == report.settings.notes
    assert "1 stack of victims ran out of memory" in (out / "share/report.html").read_text()


@pytest.mark.slow
def test_numbers_alone_are_split_too(audited, tmp_path):
    out = tmp_path / "runs" / "a"
    assert rows(audited("2 go", Run(out=out, numbers_only=True))) == rows(audited("2 go"))


@pytest.mark.slow
def test_a_run_that_was_killed_after_a_split_splits_again(audited, tmp_path):
    """With a larger memory, too. The first call kills the workers at the halves."""
    run = Run(workers=2, out=tmp_path / "runs" / "a")
    first = audited("4 end", run)
    assert first.settings.gaps
    assert [entry[-1] for entry in known_in(run.out)["split"]] == [4]
    again = audited("9 go", run)
    assert not again.settings.gaps
    assert rows(again) == rows(audited("4 go"))


def whole(limit, place, run=Experiment.run):
    place.write_text(limit)
    return AuditCase(
        "MLP((6,))", some_images(8), [Hungry(str(place))], [DEFENSE], Plan(), ThreatModel(), None,
        Victims(images=7, size=16), Criteria(), run, whole=True,
    ).report()  # fmt: skip


def test_a_stack_that_must_stay_whole_is_an_error_with_its_memory(audited, tmp_path):
    run = Run(out=tmp_path / "runs" / "a")
    told = r"out of memory with 7 victims together, which take about [\d.e-]+ GiB .* free memory"
    with pytest.raises(OutOfMemoryError, match=told):
        whole("3 go", tmp_path / "limit", run)
    assert known_in(run.out).get("split") is None
    assert rows(whole("9 go", tmp_path / "limit", run)) == rows(audited("9 go"))
    other = Run(out=tmp_path / "runs" / "b")
    audited("3 go", other)
    with pytest.raises(InputError, match=r"holds rows of a stack of victims that ran out of memory and was split"):
        whole("9 go", tmp_path / "limit", other)


def test_one_victim_that_is_too_much_is_an_error_with_a_remedy(audited, tmp_path):
    with pytest.raises(OutOfMemoryError, match=r"out of memory, with the update of one victim alone: lower --batch-s"):
        audited("0 go", Run(out=tmp_path / "runs" / "a"))
    done = rows(audited("9 go", Run(out=tmp_path / "runs" / "a")))
    assert {row["engine"] for row in split(done)} == {"vmap of 1"}


def test_a_damaged_note_on_parts_is_left_out(tmp_path):
    job = JobKey("", 0, "NoDefense()", "DLG()", 0, True)
    directory = RunDirectory(tmp_path, AUDIT, {"a": 1})
    directory.claim(force=False)
    Store(directory, {job: 4}).split(job, 2)
    assert Store(directory, {job: 4}).together(job, 4) == 2
    for damaged in (3, [3], [[]], [[*job]], [[*job, 0]], [[*job, "2"]], [[*job, True]], [[*job[:-1], 1, 2]], [{}]):
        directory.note(split=damaged)
        assert Store(directory, {job: 4}).together(job, 4) == 4
