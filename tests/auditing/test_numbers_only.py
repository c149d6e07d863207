"""``--numbers-only``: no pixel of a target image or of a reconstruction is written, and all else is as without it."""

from __future__ import annotations

import base64
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medpfl import (
    Batch,
    InputError,
    Plan,
    Record,
    Run,
    Weights,
    audit,
    audit_record,
    local_update,
    prepare,
    reproduce,
    train,
)
from medpfl.auditing.report import reread
from medpfl.cli import main
from medpfl.data import ImageFolder
from medpfl.models import LeNet
from medpfl.training.leakage import leakage
from tests.auditing.audit_cases import draw_folder, plain, tiny
from tests.flat import flat

ONE = {"attacks": ["iDLG(steps=2)"], "images": 2}
"""Two jobs of two rows: the control, and the attack."""

pytestmark = pytest.mark.usefixtures("charts")

SUFFIXES = {".lock", ".json", ".jsonl", ".html"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return draw_folder(tmp_path_factory.mktemp("numbers") / "data", {"a": 3, "b": 3}, size=16)


def run(folder, out, **options):
    return tiny(folder, **{**ONE, "numbers_only": True, "out": out, **options})


def contents(out: Path) -> bytes:
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return b"\n".join(path.name.encode() + b"\n" + path.read_bytes() for path in files)


def traces(folder: Path) -> list[bytes]:
    """Return parts of the images in the forms in which pixels are written: bytes, floats, base64 and digits."""
    found = []
    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            row = np.asarray(image)[7]
        floats = torch.from_numpy(row / 255.0)
        found += [row.tobytes(), floats.float().numpy().tobytes(), floats.double().numpy().tobytes()]
        found += [base64.b64encode(path.read_bytes())[20:60], ", ".join(map(str, row[:6].tolist())).encode()]
    return found


def without(page: str) -> str:
    """Return a page without the note, times, dates, and the nonce, which depends on them."""
    page = re.sub(r'<p class="aside">Note: Numbers only[^<]*</p>\n', "", page)
    page = re.sub(r"\d{4}-\d\d-\d\d(T[\d:+]+)?", "DATE", page)
    page = re.sub(r"""(nonce[-=]"?)[\w-]{24}""", r"\1", page)
    return re.sub("(<dt>Seconds per image</dt><dd>)[^<]*", r"\1", page)


@pytest.mark.slow
def test_the_traces_are_found_where_images_are_written(folder, tmp_path):
    run(folder, tmp_path / "run", numbers_only=False)
    assert any(trace in contents(tmp_path / "run") for trace in traces(folder))


@pytest.mark.slow
def test_no_image_is_written_and_the_shared_page_is_the_same(folder, tmp_path):
    first, other = run(folder, tmp_path / "a"), run(folder, tmp_path / "b", numbers_only=False)
    assert not (tmp_path / "a" / "private").exists()
    assert {path.suffix or path.name for path in (tmp_path / "a").rglob("*") if path.is_file()} <= SUFFIXES
    assert {path.name for path in (tmp_path / "a").iterdir()} == {".lock", "run.json", "share"}
    written = contents(tmp_path / "a")
    assert len(written) > 10_000
    assert not any(trace in written for trace in traces(folder))
    assert b"data:image" not in written
    assert b"<img" not in written
    assert plain(first.rows, "image") == plain(other.rows, "image")
    pages = [(tmp_path / name / "share/report.html").read_text() for name in "ab"]
    assert "Note: Numbers only: this audit wrote no target image and no reconstruction to any file." in pages[0]
    assert without(pages[0]) == without(pages[1])
    assert [page.name for page in first.pages] == ["report.html"]


@pytest.mark.slow
def test_finished_jobs_are_not_done_again_and_interrupted_ones_are(folder, tmp_path, monkeypatch):
    out = tmp_path / "run"
    first = run(folder, out)
    path = out / "share/findings.jsonl"
    path.write_bytes(path.read_bytes()[:-20])  # the last job's second row is cut
    second = run(folder, out)
    assert plain(second.rows) == plain(first.rows)
    kept = [(row.seconds, row.date) for row in second.rows]
    assert kept[:2] == [(row.seconds, row.date) for row in first.rows][:2]
    monkeypatch.setattr("medpfl.auditing.player.Player.__call__", lambda *_: pytest.fail("played a finished job"))
    assert [(row.seconds, row.date) for row in run(folder, out).rows] == kept
    before = contents(out)
    reread(out)
    assert contents(out) == before
    assert not (out / "private").exists()


@pytest.mark.slow
def test_a_run_with_pictures_is_not_continued_without_them_nor_the_reverse(folder, tmp_path):
    run(folder, tmp_path / "with", numbers_only=False)
    with pytest.raises(InputError, match="holds images of a run without --numbers-only"):
        run(folder, tmp_path / "with")
    shutil.rmtree(tmp_path / "with" / "private")
    rows = (tmp_path / "with" / "share/findings.jsonl").read_bytes()
    run(folder, tmp_path / "with")
    assert (tmp_path / "with" / "share/findings.jsonl").read_bytes() == rows
    with pytest.raises(InputError, match="holds a run with --numbers-only: give that option again"):
        run(folder, tmp_path / "with", numbers_only=False)
    assert (tmp_path / "with" / "share/findings.jsonl").read_bytes() == rows


@pytest.mark.slow
def test_on_the_command_line(folder, tmp_path, capsys):
    words = ["audit", str(folder), "--model", "LeNet('idlg')", "--attack", "iDLG(steps=2)", "--size", "16"]
    assert main([*words, "--images", "2", "--numbers-only", "--out", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "Numbers only" in shown
    assert "must stay" not in shown
    assert not (tmp_path / "run" / "private").exists()


@pytest.mark.slow
def test_of_a_record_whose_images_lie_only_in_their_own_folder(folder, tmp_path):
    """The record holds no image, and its truth is the folder itself: nothing on the disk copies an image."""
    data = ImageFolder(folder, size=16).load()
    network, plan = LeNet("idlg").build(data.shape, 2, seed=0), Plan(batch_size=len(data))
    weights = Weights.of(network)
    sent = local_update(prepare(network, plan), Batch(data.images, data.labels), plan, weights)
    record, out = tmp_path / "record", tmp_path / "runs" / "a"
    Record(sent, plan, weights, image_shape=data.shape, classes=data.classes).save(record)
    assert not any(trace in record.read_bytes() for trace in traces(folder))
    settings = Run(out=out, numbers_only=True)
    report = audit_record(record, folder, "LeNet('idlg')", attacks=["iDLG(steps=2)"], run=settings)
    assert {row.defense for row in report.rows} == {"NoDefense()", "Recorded()"}
    written = contents(out)
    assert not any(trace in written for trace in traces(folder))
    assert not any(name.encode() in written for name in (*data.names, str(folder), str(record)))
    assert not (out / "private").exists()


@pytest.mark.slow
def test_without_a_directory_nothing_is_kept(folder):
    assert len(run(folder, None).rows) == 4


@pytest.mark.slow
def test_over_the_rounds_of_a_training(folder, tmp_path):
    flat(train, "MLP(hidden=(4,))", folder, rounds=1, size=16, clients=1, out=tmp_path / "training", plan=Plan())
    flat(
        leakage, tmp_path / "training", folder, [0, 1], attacks=["iDLG(steps=1)"], images=1, size=16,
        out=tmp_path / "runs" / "all", numbers_only=True,
    )  # fmt: skip
    found = [path for path in (tmp_path / "runs").rglob("*") if path.is_file() and path.parent != tmp_path / "runs"]
    assert len({path.parent.parent for path in found}) >= 3
    assert {path.suffix or path.name for path in found} <= SUFFIXES
    assert not list((tmp_path / "runs").rglob("private"))


def test_runs_that_draw_or_train_do_not_have_the_option(folder, tmp_path, capsys):
    with pytest.raises(InputError, match="numbers_only applies to attacks only"):
        train("MLP", folder, run=Run(numbers_only=True))
    with pytest.raises(InputError, match="leave out numbers_only, or audit each set by itself"):
        reproduce(data="samples", run=Run(out=tmp_path / "r", numbers_only=True))
    for command in ("train", "reproduce"):
        assert main([command, "--numbers-only"]) == 2
    assert "numbers-only" in capsys.readouterr().err
    assert audit.__kwdefaults__["run"].numbers_only is False
