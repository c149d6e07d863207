"""An audit is killed with -9 in the middle, twice, and continued."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from medpfl.auditing.report import reread
from medpfl.auditing.store import read_rows
from medpfl.cli import main
from tests.auditing.audit_cases import plain
from tests.processes import start

STOPS_AFTER_FOUR = """
import sys, time
from medpfl import cli
from medpfl.auditing.player import Player

play, done = Player.__call__, []

def slow(self, job):
    done.append(job)
    found = play(self, job)
    if len(done) > 4:
        time.sleep(60)
    return found

Player.__call__ = slow
cli.main(sys.argv[1:])
"""

DIES_IN_THE_MIDDLE_OF_A_LINE = """
import os, signal, sys
from medpfl import cli
from medpfl.runs import directory as run_files

write, added = run_files._line, []

def die(row):
    line = write(row)
    added.append(row)
    if len(added) > store_had + 2:
        with open(sys.argv[-1] + "/share/findings.jsonl", "ab") as file:
            file.write(line[: len(line) // 2])
            file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return line

store_had = sum(1 for _ in open(sys.argv[-1] + "/share/findings.jsonl"))
run_files._line = die
cli.main(sys.argv[1:])
"""


def words(folder: Path, out: Path) -> list[str]:
    options = "--attack iDLG(steps=1) --attack DLG(steps=1) --draws 2 --images 3 --size 16 --memory 1e-6 --quiet"
    return ["audit", str(folder), "--model", "MLP((4,))", *options.split(), "--out", str(out)]


@pytest.mark.slow
def test_a_killed_audit_continues_and_ends_with_the_same_rows(folder, tmp_path, capsys):
    whole, out = tmp_path / "runs" / "whole", tmp_path / "runs" / "killed"
    assert main(words(folder, whole)) == 0
    undisturbed = list(read_rows(whole / "share/findings.jsonl"))
    assert len(undisturbed) == 2 + 2 * 2 * 3

    path = out / "share/findings.jsonl"
    process, deadline = start(STOPS_AFTER_FOUR, *words(folder, out)), time.monotonic() + 60
    while not (path.exists() and path.read_bytes().count(b"\n") == 4):
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    first = list(read_rows(path))
    assert len(first) == 4

    process = start(DIES_IN_THE_MIDDLE_OF_A_LINE, *words(folder, out))
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    assert not path.read_bytes().endswith(b"\n")
    finished = list(read_rows(path))
    assert len(finished) == 6
    assert finished[:4] == first, "what was finished was not done again"

    assert main(words(folder, out)) == 0
    rows = list(read_rows(path))
    assert plain(rows) == plain(undisturbed)
    assert rows[:6] == finished
    assert plain(reread(out).rows) == plain(undisturbed)
    assert {p.name for p in out.rglob("*.safetensors")} == {p.name for p in whole.rglob("*.safetensors")}
    assert not list(out.rglob(".*.json*")), "no half-written file is left"
