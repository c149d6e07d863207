"""An audit that is killed with -9 in the middle, and given again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from audit_cases import plain

from medpfl.auditing.report import reread
from medpfl.auditing.store import read_rows
from medpfl.cli import main


def words(folder: Path, out: Path) -> list[str]:
    options = "--attack iDLG(steps=25) --attack DLG(steps=25) --draws 2 --images 4 --size 16 --memory 1e-6 --quiet"
    return ["audit", str(folder), "--model", "LeNet('idlg')", *options.split(), "--out", str(out)]


def kill_when(arguments: list[str], ready: Path, lines: int) -> None:
    """Starts the command, and kills it with -9 as soon as a file has so many lines."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "medpfl.cli", *arguments], env=environment)
    try:
        deadline = time.monotonic() + 60
        while not (ready.exists() and ready.read_bytes().count(b"\n") >= lines):
            assert process.poll() is None, "the audit ended before it could be killed"
            assert time.monotonic() < deadline, "the audit did not start"
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL


def test_a_killed_audit_continues_and_ends_with_the_same_rows(folder, tmp_path, capsys):
    whole, out = tmp_path / "runs" / "whole", tmp_path / "runs" / "killed"
    assert main(words(folder, whole)) == 0
    undisturbed = list(read_rows(whole / "findings.jsonl"))
    assert len(undisturbed) == 2 + 2 * 2 * 4

    kill_when(words(folder, out), out / "run.json", lines=1)  # at the very beginning
    early = list(read_rows(out / "findings.jsonl"))
    kill_when(words(folder, out), out / "findings.jsonl", lines=4)  # in the middle
    finished = list(read_rows(out / "findings.jsonl"))
    assert 4 <= len(finished) < len(undisturbed)
    assert finished[: len(early)] == early

    assert main(words(folder, out)) == 0
    rows = list(read_rows(out / "findings.jsonl"))
    assert plain(rows) == plain(undisturbed)
    assert rows[: len(finished)] == finished, "what was finished was not done again"
    assert plain(reread(out).rows) == plain(undisturbed)
    assert {p.name for p in out.rglob("*.safetensors")} == {p.name for p in whole.rglob("*.safetensors")}
    assert not list(out.rglob(".*.json*")), "no half-written file is left"
