"""A killed audit leaves no process and no directory behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

AUDIT = """
import sys, time
from medpfl.isolation.process import Process
process = Process("a_busy_worker")
head, _ = process.pipe.receive()
print(process.number, head["cwd"], flush=True)
time.sleep(600)
"""

WORKER = """
import os
from pathlib import Path
from threading import Thread
from medpfl.isolation import worker
folder, parent = Path.cwd(), os.getppid()
pipe = worker._pipe()
Thread(target=worker._watch, args=(pipe.source, parent, folder), daemon=True).start()
print("it prints where errors go")
pipe.send({{"cwd": str(folder)}})
{does}
"""


COMPUTES = "while True: pass"
WAITS = """
try:
    pipe.receive()
except EOFError:
    worker._leave(folder)
"""


@pytest.mark.parametrize("does", [COMPUTES, WAITS], ids=["computing", "waiting"])
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_when_the_audit_is_killed(tmp_path, does, by):
    (tmp_path / "a_busy_worker.py").write_text(WORKER.format(does=does))
    own = os.environ.get("PYTHONPATH", "")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), own]))}
    audit = subprocess.Popen([sys.executable, "-c", AUDIT], env=environment, stdout=subprocess.PIPE, text=True)
    assert audit.stdout is not None
    number, folder = audit.stdout.readline().split()
    assert Path(f"/proc/{number}").exists()
    assert Path(folder).is_dir()
    audit.send_signal(by)
    assert audit.wait(timeout=30) == -by
    audit.stdout.close()
    until = time.monotonic() + 30
    while Path(folder).exists() or _runs(int(number)):
        assert time.monotonic() < until, "it goes on without its audit"
        time.sleep(0.05)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
