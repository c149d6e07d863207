"""The repetition of a finished audit: it reads the report, and does no work unless something differs or is missing."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from importlib import import_module

import pytest
import torch

from medpfl import Attack, Defense, InputError
from tests.auditing.audit_cases import Answers, draw_folder, plain, tiny

pytestmark = pytest.mark.slow

CHEAP = {"images": 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a folder with pictures and a finished run, and its report."""
    base = tmp_path_factory.mktemp("finished")
    folder = draw_folder(base / "data", {"benign": 2, "malignant": 2})
    return base, tiny(folder, out=base / "runs" / "a", **CHEAP)


@pytest.fixture
def run(finished):
    """Return the folder, the run and its report; afterwards, the run is as it was."""
    base, report = finished
    shutil.copytree(base / "runs", base / "kept")
    yield base / "data", base / "runs" / "a", report
    shutil.rmtree(base / "runs")
    (base / "kept").rename(base / "runs")


@pytest.fixture
def worked(monkeypatch):
    """Return the steps that an audit took: its checks, its jobs, its pages."""
    steps = []

    def noted(place, step):
        module, name = place.rsplit(".", 1)
        own = getattr(import_module(module), name)

        def call(*args, **options):
            steps.append(step)
            return own(*args, **options)

        monkeypatch.setattr(place, call)

    noted("medpfl.auditing.execution.checked", "checks")
    noted("medpfl.auditing.execution.settings_of", "probe")
    noted("medpfl.reporting.write_pages", "pages")
    return steps


def stamps(out):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("[!.]*") if path.is_file()}


def same(one, other):
    assert one.summary == other.summary
    assert one.rows == other.rows
    assert one.settings == other.settings
    assert set(one.pages) == set(other.pages)
    assert one.classes == other.classes
    assert one.verdict() == other.verdict()


def test_a_repetition_reads_the_report_and_writes_nothing(run, worked, capsys):
    folder, out, first = run
    before = stamps(out)
    second = tiny(folder, out=out, progress=True, **CHEAP)
    assert worked == []
    assert stamps(out) == before
    same(second, first)
    assert "all 2 jobs are done already" in capsys.readouterr().err
    assert second.images(1)[0] is not None
    assert tiny(folder, out=out, **CHEAP).rows == first.rows, "and so does the next"
    assert worked == []


def lost_page(out):
    (out / "share/report.html").unlink()


def lost_panel(out):
    next((out / "private/pictures").iterdir()).unlink()


def lost_images(out):
    next((out / "private/images").iterdir()).unlink()


def lost_row(out):
    path = out / "share/findings.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def other_row(out):
    path = out / "share/findings.jsonl"
    path.write_text(path.read_text().replace('"success": false', '"success": true'))


def noted(out, **values):
    path = out / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("reported", [None, [], {"pages": 3}, {"pages": ["/"]}])
def test_a_damaged_note_of_what_was_reported_counts_as_none(run, worked, reported):
    folder, out, first = run
    noted(out, reported=reported)
    again = tiny(folder, out=out, **CHEAP)
    assert worked == ["checks", "probe", "pages"]
    assert (again.summary, again.rows) == (first.summary, first.rows)


@pytest.mark.parametrize("damage", [lost_page, lost_panel, lost_images, lost_row, other_row])
def test_what_is_missing_or_changed_is_made_again(run, worked, damage):
    folder, out, first = run
    files = {path.relative_to(out) for path in stamps(out)}
    damage(out)
    again = tiny(folder, out=out, **CHEAP)
    assert worked == ["checks", "probe", "pages"]
    assert {path.relative_to(out) for path in stamps(out)} == files
    assert [row.success for row in again.rows] == [row.success or damage is other_row for row in first.rows]
    worked.clear()
    tiny(folder, out=out, **CHEAP)
    assert worked == [], "and then it is finished"


@pytest.mark.parametrize(
    ("options", "page"),
    [({"tolerance": 0.4}, "40"), ({"title": "Ward 7"}, "Ward 7"), ({"delta": 1e-7}, "")],
)
def test_options_that_change_only_the_pages_change_them(run, worked, options, page):
    folder, out, first = run
    again = tiny(folder, out=out, **CHEAP, **options)
    assert worked == ["checks", "probe", "pages"]
    assert plain(again.rows) == plain(first.rows)
    assert page in (out / "share/report.html").read_text()


def test_a_new_file_that_cannot_be_read_is_mentioned(run, worked):
    folder, out, _ = run
    (folder / "benign" / "cut.png").write_bytes(b"no picture")
    try:
        again = tiny(folder, out=out, **CHEAP)
    finally:
        (folder / "benign" / "cut.png").unlink()
    assert "pages" in worked
    assert any("could not be read" in note for note in again.settings.notes)


def test_force_checks_everything_again(run, worked):
    folder, out, _ = run
    tiny(folder, out=out, force=True, **CHEAP)
    assert worked == ["checks", "probe", "pages"]


@pytest.mark.parametrize("other", [{"seed": 1}, {"model": "MLP((5,))"}, {"images": 4}, {"size": 12}])
def test_another_audit_is_refused_as_ever(run, worked, other):
    folder, out, _ = run
    with pytest.raises(InputError, match="holds another audit"):
        tiny(folder, out=out, **CHEAP | other)
    assert worked == ["checks"]


def test_the_standard_attack_keeps_the_budget_of_the_run(folder, tmp_path, worked):
    options = {"attacks": [], "model": "MLP((6,))", "images": 2, "size": 12, "out": tmp_path / "a"}
    first = tiny(folder, minutes=0.001, **options)
    assert worked == ["checks", "probe", "pages"]
    worked.clear()
    same(tiny(folder, minutes=5.0, **options), first)
    assert worked == []


@dataclass(frozen=True, repr=False)
class Careless(Attack):
    """An attack that draws from torch's global generator."""

    def __call__(self, seen, generator):
        return replace(Answers()(seen, generator), guesses=torch.rand(len(seen), seen.num_images, *seen.image_shape))


@dataclass(frozen=True, repr=False)
class CarelessNoise(Defense):
    """A defense that draws from torch's global generator."""

    def update(self, update, state, generator):
        return replace(update, tensors={k: t + torch.randn_like(t) for k, t in update.tensors.items()}), state


def test_parts_that_draw_from_a_global_generator_give_the_same_rows_again(folder):
    def rows(**options):
        torch.manual_seed(len(options))  # whatever else drew before
        return plain(
            tiny(folder, attacks=[Careless(), "iDLG(steps=2)"], defenses=[CarelessNoise()], **options).rows, "image"
        )

    first = rows()
    assert rows(draws=1) == first
    assert len({row["scores"]["ssim"] for row in first if "Careless" in row["attack"]}) > 2
