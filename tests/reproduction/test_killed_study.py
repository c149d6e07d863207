"""A reproduction killed in the middle continues from there."""

from __future__ import annotations

import csv
import signal
import time
from pathlib import Path

import pytest

from medpfl import cli
from medpfl.auditing.store import read_rows
from medpfl.runs.jobs import job_of
from tests.processes import start

WORDS = ["reproduce", "noise", "--part", "iDLG", "--data", "samples", "--images", "2", "--steps", "6", "--quiet"]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def table(out: Path) -> list[dict[str, str]]:
    with (out / "share/noise.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds_per_image"} for row in csv.DictReader(file)]


@pytest.mark.slow
def test_a_kill_costs_at_most_the_stack_of_images_that_was_attacked(tmp_path, monkeypatch, no_pages):
    monkeypatch.setattr("medpfl.reproduction.collection.write_legacy", lambda _: ())
    out, whole = tmp_path / "killed", tmp_path / "whole"
    rows = tmp_path / "killed/runs" / "noise-samples-idlg" / "share/findings.jsonl"
    process = start("import sys; from medpfl import cli; cli.main(sys.argv[1:])", *WORDS, "--out", out)
    while process.is_alive() and len(lines(rows)) < 6:
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    before, jobs = lines(rows), {job_of(row) for row in read_rows(rows)}
    assert cli.main([*WORDS, "--out", str(out)]) == 0
    after = set(lines(rows))
    redone = {job_of(row) for row, line in zip(read_rows(rows), lines(rows), strict=True) if line not in before}
    assert len(before) >= 6
    assert len(jobs & redone) <= 1, "rows that were whole are kept to the letter, their dates too"
    assert len(after) > len(before)
    assert cli.main([*WORDS, "--out", str(whole)]) == 0
    assert table(out) == table(whole)
