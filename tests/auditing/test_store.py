"""The run directory: when a job counts as finished, and who may write."""

from __future__ import annotations

import json
import shutil
import stat
from dataclasses import replace

import pytest

from medpfl import InputError
from medpfl.auditing.report import reread
from medpfl.auditing.store import read_rows
from tests.auditing.audit_cases import draw_folder, plain, tiny

pytestmark = pytest.mark.usefixtures("no_pages_else")  # those of the run that is copied are drawn

MANY = {"attacks": ["iDLG(steps=3)", "iDLG(steps=4)"], "memory": 1e-6, "images": 2, "out": None}
"""Six jobs of one row: two controls, and two attacks on two stacks."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a folder of pictures, with a finished run of six jobs beside it, and its report."""
    base = tmp_path_factory.mktemp("finished")
    folder = draw_folder(base / "data", {"benign": 5, "malignant": 5})
    return base, tiny(folder, **{**MANY, "out": base / "runs" / "a"})


@pytest.fixture
def folder(finished):
    return finished[0] / "data"


@pytest.fixture
def run(finished, tmp_path):
    """Return a copy of the finished run, and its report."""
    base, report = finished
    shutil.copytree(base / "runs", tmp_path / "runs")
    return tmp_path / "runs" / "a", report


def again(folder, out, **options):
    return tiny(folder, **{**MANY, "out": out, **options})


def stamps(report):
    return [(row.seconds, row.date) for row in report.rows]


@pytest.mark.slow
def test_finished_work_is_not_done_again(folder, run, monkeypatch):
    out, first = run
    assert len(first.rows) == 6
    monkeypatch.setattr("medpfl.auditing.player.Player.__call__", lambda *_: pytest.fail("played a finished job"))
    second = again(folder, out)
    assert stamps(second) == stamps(first)
    assert plain(second.rows) == plain(first.rows)
    assert second.summary == first.summary


def cut_last_line(out):
    path = out / "share/findings.jsonl"
    path.write_bytes(path.read_bytes()[:-20])


def drop_newline(out):
    path = out / "share/findings.jsonl"
    path.write_bytes(path.read_bytes()[:-1])


def drop_pictures(out):
    rows = list(read_rows(out / "share/findings.jsonl"))
    from medpfl.runs.jobs import job_of

    (out / "private/images" / job_of(rows[-1]).file_name()).unlink()


def garble_a_line(out):
    path = out / "share/findings.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:-1], b'{"attack": 1}\n']))


def double_a_line(out):
    path = out / "share/findings.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines, lines[-1]]))


@pytest.mark.slow
@pytest.mark.parametrize("damage", [cut_last_line, drop_newline, drop_pictures, garble_a_line, double_a_line])
def test_a_damaged_job_is_redone_and_only_that(folder, run, damage):
    out, first = run
    damage(out)
    second = again(folder, out)
    assert plain(second.rows) == plain(first.rows)
    assert [a == b for a, b in zip(stamps(second), stamps(first), strict=True)] == [True] * 5 + [False]
    on_disk = list(read_rows(out / "share/findings.jsonl"))
    assert sorted(map(str, plain(on_disk))) == sorted(map(str, plain(first.rows))), "the file is whole again"


WRONG = [
    {"stack": [1]}, {"stack": "0"}, {"scores": None}, {"scores": {"ssim": "x"}}, {"scores": [1]}, {"success": 1},
    {"draw": 1.5}, {"flags": "zero"}, {"grants": [1]}, {"versions": {"a": 1}}, {"more": 1}, {"seconds": float("nan")},
    {"loss": float("inf")}, {"image": None}, {"label": True},
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong", [*WRONG, "[1]", "3", "null", "[" * 100_000, '{"stack": 1}', "\xff"], ids=lambda w: str(w)[:20]
)
def test_a_line_of_valid_json_that_is_no_row(folder, run, wrong):
    """In the middle: a report names the line, and the same audit repeats its job. At the end: it counts as cut off."""
    out, first = run
    path = out / "share/findings.jsonl"
    lines = path.read_text().splitlines()
    bad = json.dumps(json.loads(lines[1]) | wrong) if isinstance(wrong, dict) else wrong
    path.write_text("\n".join([lines[0], bad, *lines[2:]]) + "\n")
    with pytest.raises(InputError, match=r"findings.jsonl', line 2, is damaged .*repeat the command"):
        reread(out)
    path.write_text("\n".join([*lines, bad]) + "\n")
    assert len(reread(out).rows) == 6
    path.write_text("\n".join([lines[0], bad, *lines[2:]]) + "\n")
    second = again(folder, out)
    assert plain(second.rows) == plain(first.rows)
    assert stamps(second)[0] == stamps(first)[0]
    assert len(reread(out).rows) == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"identity": [1]}, {"identity": None}, {"settings": 5}, {"settings": {"notes": 5, "experiment": [1]}},
        {"settings": {"bounds": {"a": 1}}}, {"jobs": 3}, {"jobs": [[1]]}, {"jobs": [[[], {}, 1]]}, {"format": [2]},
    ],
    ids=str,
)  # fmt: skip
def test_a_run_json_with_other_types_is_an_error_in_words(folder, run, change):
    out, first = run
    known = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(known | change))
    with pytest.raises(InputError, match=str(out)):
        reread(out)
    again(folder, out, force=True)
    assert len(first.rows) == len(reread(out).rows)


@pytest.mark.slow
def test_a_job_with_a_row_too_few_is_redone_whole(folder, tmp_path):
    out = tmp_path / "runs" / "b"
    first = tiny(folder, images=4, out=out)
    assert [row.stack for row in first.rows] == [0] * 8, "two jobs of four rows"
    lines = (out / "share/findings.jsonl").read_bytes().splitlines(keepends=True)
    (out / "share/findings.jsonl").write_bytes(b"".join(lines[:5] + lines[6:]))
    second = tiny(folder, images=4, out=out)
    assert plain(second.rows) == plain(first.rows)
    assert [a == b for a, b in zip(stamps(second), stamps(first), strict=True)] == [True] * 4 + [False] * 4
    assert len(list(read_rows(out / "share/findings.jsonl"))) == 8


def test_rows_that_are_not_planned_are_dropped(folder, run):
    out, first = run
    path = out / "share/findings.jsonl"
    strange = json.loads(path.read_bytes().splitlines()[-1]) | {"stack": 77}
    path.write_bytes(path.read_bytes() + json.dumps(strange).encode() + b"\n")
    second = again(folder, out)
    assert stamps(second) == stamps(first)
    assert all(row.stack < 2 for row in read_rows(path))


@pytest.mark.slow
def test_another_experiment_is_refused_and_says_what_differs(folder, run):
    out, first = run
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match=r"holds another audit \(other weights, seed\).*--force"):
        again(folder, out, seed=1)
    with pytest.raises(InputError, match=r"\(other attacks, defenses, threat, images\)"):
        again(folder, out, attacks=["DLG(steps=2)"], defenses=["LaplaceNoise"], images=3)
    with pytest.raises(InputError, match="other model, weights"):
        again(folder, out, model="LeNet('dlg')")
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before, "nothing was touched"
    assert stamps(again(folder, out)) == stamps(first)


def test_other_pixels_under_the_same_names_are_another_experiment(folder, run):
    out, _ = run
    shutil.copytree(folder, out.parent.parent / "data")
    other = draw_folder(out.parent.parent / "data", {"benign": 5, "malignant": 5}, seed=9)
    with pytest.raises(InputError, match="other pixels"):
        again(other, out)


@pytest.mark.slow
def test_force_discards_another_experiment_with_its_pictures(folder, run, pages):
    out, _ = run
    old = {p.name for p in (out / "private/images").iterdir()}
    (out / "private/images" / "mine.txt").write_text("not of a run")
    report = again(folder, out, seed=1, attacks=["DLG(steps=2)"], force=True)
    assert {row.seed for row in report.rows} == {1}
    assert {row.attack for row in read_rows(out / "share/findings.jsonl")} == {"DLG(steps=2)"}
    new = {p.name for p in (out / "private/images").iterdir()}
    assert not old & new, "private images of the discarded run are gone"
    assert "mine.txt" in new
    assert {p for p in report.pages if p.suffix == ".png"} == set((out / "private/pictures").iterdir())


def test_force_discards_nothing_of_the_same_experiment(folder, run):
    out, first = run
    assert stamps(again(folder, out, force=True)) == stamps(first)


@pytest.mark.slow
@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}"])
def test_rows_without_a_readable_identity_are_not_trusted(folder, run, text):
    out, _ = run
    if text is None:
        (out / "run.json").unlink()
    else:
        (out / "run.json").write_text(text)
    with pytest.raises(InputError, match="another audit"):
        again(folder, out, seed=5)
    assert {row.seed for row in again(folder, out, seed=5, force=True).rows} == {5}


@pytest.mark.slow
def test_a_directory_of_another_format_is_not_continued(folder, run):
    out, _ = run
    settings = json.loads((out / "run.json").read_text())
    del settings["format"]  # as before there was one
    (out / "run.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"made by another version of MedPFL: its format is 1, .* --force to discard"):
        again(folder, out)
    with pytest.raises(InputError, match=r"another version of MedPFL: .* make its pages with that version"):
        reread(out)
    assert len(again(folder, out, force=True).rows) == 6


@pytest.mark.slow
def test_two_audits_on_one_directory_at_once(folder, run, monkeypatch):
    out, first = run
    messages = []

    def intrude(*_):
        with pytest.raises(InputError) as caught:
            again(folder, out)
        messages.append(str(caught.value))
        return []

    monkeypatch.setattr("medpfl.auditing.settings._notes", intrude)  # called while the directory is held
    again(folder, out, title="With other pages")
    assert "another run is writing to" in messages[0]
    monkeypatch.undo()
    assert stamps(again(folder, out)) == stamps(first), "the directory is free again"


@pytest.mark.slow
def test_an_audit_that_fails_lets_go_of_the_directory(folder, run, monkeypatch):
    out, first = run
    with monkeypatch.context() as patch:
        patch.setattr("medpfl.auditing.settings._notes", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            again(folder, out, title="With other pages")
    assert stamps(again(folder, out)) == stamps(first)


@pytest.mark.slow
def test_in_memory_gives_the_same_rows_but_for_study_indices(folder, run):
    _, on_disk = run
    in_memory = again(folder, None)
    assert plain(in_memory.rows, "image", "patient") == plain(on_disk.rows, "image", "patient")
    assert [row.image for row in in_memory.rows] != [row.image for row in on_disk.rows]
    assert in_memory.pages == ()

    def without_time(summary):
        return [replace(cell, seconds_per_image=None) for cell in summary]

    assert without_time(in_memory.summary) == without_time(on_disk.summary)


def test_what_is_written(run):
    out, report = run
    assert {p.name for p in out.iterdir()} == {".lock", "run.json", "share", "private"}
    assert {p.name for p in (out / "share").iterdir()} == {"findings.jsonl", "summary.json", "report.html"}
    assert {p.name for p in (out / "private").iterdir()} == {"images", "pictures", "report-with-images.html"}
    assert json.loads((out / "share/summary.json").read_text()) == [cell.to_dict() for cell in report.summary]
    assert set(plain(read_rows(out / "share/findings.jsonl"))[0]) == set(plain(report.rows)[0])
    private = list((out / "private").rglob("*"))
    assert {stat.S_IMODE(p.stat().st_mode) for p in private if p.is_file()} == {0o600}
    assert {stat.S_IMODE(p.stat().st_mode) for p in [out / "private", *private] if p.is_dir()} == {0o700}


@pytest.mark.slow
def test_pictures_are_truth_and_guess(folder, tmp_path):
    from safetensors.torch import load_file

    from medpfl.data import ImageFolder

    out = tmp_path / "runs" / "c"
    report = tiny(folder, images=3, out=out)
    data = ImageFolder(folder, size=16).load()
    key = json.loads((out.parent / "medpfl-key.json").read_text())["images"]
    row = report.rows[-1]
    (place,) = [i for i, name in enumerate(data.names) if key[row.image].endswith(name)]
    shown = [load_file(p) for p in (out / "private/images").iterdir()]
    truth = (data.images[place] * 255).round().byte()
    assert any((truth == s["truths"][-1]).all() for s in shown)


MODEL = """
from torch import nn

def make_model(num_classes):
    net = nn.Sequential(nn.Flatten(), nn.Linear(256, 4), nn.ACTIVATION(), nn.Linear(4, num_classes))
    for p in net.parameters():
        nn.init.constant_(p, 0.1)
    return net
"""


@pytest.mark.slow
def test_another_model_with_the_same_weights_is_another_experiment(folder, tmp_path):
    model, out = tmp_path / "model.py", tmp_path / "runs" / "b"
    model.write_text(MODEL.replace("ACTIVATION", "Sigmoid"))
    again(folder, out, model=f"{model}:make_model")
    model.write_text(MODEL.replace("ACTIVATION", "ReLU"))
    with pytest.raises(InputError, match=r"the code of the model make_model changed \(module model\); other layers"):
        again(folder, out, model=f"{model}:make_model")


def test_other_patients_are_another_experiment(folder, run):
    out, _ = run
    (folder / "index.csv").write_text("file,patient_id\nbenign/0.png,p1\nbenign/1.png,p1\n")
    with pytest.raises(InputError, match="other pixels"):
        again(folder, out)


@pytest.mark.slow
def test_a_run_that_ended_before_its_first_row_is_no_other_experiment(folder, tmp_path):
    out = tmp_path / "runs" / "a"
    tiny(folder, images=2, out=out)
    (out / "share/findings.jsonl").write_text("")
    assert len(tiny(folder, images=2, attacks=["iDLG(steps=4)"], out=out).rows) == 4
    with pytest.raises(InputError, match="another audit"):
        tiny(folder, images=2, attacks=["iDLG(steps=5)"], out=out)
