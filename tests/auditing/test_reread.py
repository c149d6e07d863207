"""Pages made again from a run directory's rows."""

from __future__ import annotations

import json
import shutil

import pytest

from medpfl import InputError
from medpfl.auditing.report import reread
from tests.auditing.audit_cases import plain, tiny


@pytest.fixture
def run(folder, tmp_path):
    out = tmp_path / "runs" / "a"
    return out, tiny(folder, out=out, defenses=["LaplaceNoise(scale=0.1)"], draws=2, memory=1e-6, images=2)


def contents(out):
    return {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_the_pages_are_the_same_to_the_byte(run, charts):
    out, first = run
    before = contents(out)
    second = reread(out)
    assert contents(out) == before
    assert second.summary == first.summary
    assert second.rows == first.rows
    assert second.settings == first.settings
    assert second.pages == first.pages
    assert second.verdict() == first.verdict()


@pytest.mark.slow
def test_pages_that_were_lost_come_back(run):
    out, _ = run
    before = contents(out)
    shutil.rmtree(out / "private/pictures")
    for name in ("share/summary.json", "share/report.html", "private/report-with-images.html"):
        (out / name).unlink()
    reread(out)
    assert contents(out) == before


@pytest.mark.slow
def test_rows_of_older_versions_without_a_score_are_read(run):
    out, _ = run
    rows = [json.loads(line) for line in (out / "share/findings.jsonl").read_text().splitlines()]
    new = ("ncc", "mean_image_ncc", "nearest_ncc", "noise_ssim", "noise_ncc")
    old = [row | {"scores": {k: v for k, v in row["scores"].items() if k not in new}} for row in rows]
    (out / "share/findings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
    again = reread(out)
    assert {(cell.ncc, cell.ncc_noise, cell.ncc_above_noise.value) for cell in again.summary} == {(None, None, None)}
    page = (out / "share/report.html").read_text()
    assert "For comparison" not in page
    assert "NCC" in page


@pytest.mark.slow
def test_pages_say_what_the_rows_say(run):
    out, first = run
    rows = (out / "share/findings.jsonl").read_text().splitlines()
    changed = [json.dumps(json.loads(line) | {"success": True}) for line in rows]
    (out / "share/findings.jsonl").write_text("\n".join(changed) + "\n")
    again = reread(out)
    assert {cell.asr.value for cell in first.summary} == {0.0}
    assert {cell.asr.value for cell in again.summary} == {1.0}


@pytest.mark.slow
def test_an_unfinished_run_shows_its_whole_jobs_and_keeps_its_rows(run):
    out, first = run
    path = out / "share/findings.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    part = b"".join(lines[:4]) + lines[4][:50]
    path.write_bytes(part)
    assert plain(reread(out).rows) == plain(first.rows[:4])
    assert path.read_bytes() == part, "what a report reads, it leaves as it is"


@pytest.mark.slow
def test_images_that_were_removed_do_not_cost_the_rows(run):
    """Users delete the private images before they share a run directory."""
    out, first = run
    rows = (out / "share/findings.jsonl").read_bytes()
    shutil.rmtree(out / "private")
    again = reread(out)
    assert again.summary == first.summary
    assert [p.name for p in again.pages] == ["report.html"]
    assert (out / "share/findings.jsonl").read_bytes() == rows


@pytest.mark.slow
def test_no_run_directory(run, tmp_path):
    out, _ = run
    with pytest.raises(InputError, match=r"is not a run directory: it has no run\.json"):
        reread(tmp_path / "nowhere")
    (out / "share/findings.jsonl").write_text("")
    with pytest.raises(InputError, match="holds no finished rows yet"):
        reread(out)
    (out / "run.json").write_text("[]")
    with pytest.raises(InputError, match="is not a run directory"):
        reread(out)
