"""Rows do not depend on the engine, on the number of workers, or on processes that were killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import medpfl
from medpfl import InputError, Run, Victims
from medpfl.auditing.report import reread
from medpfl.auditing.store import read_rows
from medpfl.cli import main
from tests.auditing.audit_cases import OWN_ATTACK, plain, some_images

FILE = (
    OWN_ATTACK
    + '''
import os, signal
from pathlib import Path
from torch import nn
from medpfl.core.roles import Attack, Defense
import neighbor

@dataclass(frozen=True, repr=False)
class Dying(Attack):
    """Ends its process on updates of a defense, while a file is missing."""
    mark: str = ""
    def __call__(self, seen, generator):
        if seen.views[0].channel is not None and not Path(self.mark).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return iDLG(steps=2)(seen, generator)

@dataclass(frozen=True, repr=False)
class Halved(Defense):
    """Sends half of it."""
    def update(self, value, state, generator):
        return value.replace({k: t / neighbor.BY for k, t in value.tensors.items()}), state

def make_model(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.Sigmoid(), nn.Linear(4, num_classes))
'''
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "own" / "parts.py"
    path.parent.mkdir()
    path.write_text(FILE)
    (path.parent / "neighbor.py").write_text("BY = 2.0\n")
    yield path
    for name in ("medpfl_user_parts", "neighbor"):
        sys.modules.pop(name, None)


def bare(rows):
    """Return rows without what differs between two runs, and between two keys: a path in a spec is hidden by one."""
    return plain(rows, "image", "nearest_image", "attack")


def audited(model, run, **options):
    given = {"attacks": ["iDLG(steps=3)"], "victims": Victims(images=4, size=16), **options}
    return medpfl.audit(model, some_images(8), run=replace(run, memory=1e-6), **given)


@pytest.mark.slow
def test_rows_are_the_same_in_every_engine(tmp_path):
    """Own attacks, defenses and models from files, with neighbors, and a network from this very module."""
    found = [
        bare(audited("LeNet('idlg')", run, defenses=["LaplaceNoise(scale=0.01)"]).rows)
        for run in (Run(), Run(workers=2), Run(engine="processes", workers=1))
    ]
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 1 + 3 * 4


@pytest.mark.slow
def test_own_parts_reach_the_workers(file):
    options = {"attacks": [f"{file}:Mine", "iDLG(steps=2)"], "defenses": [f"{file}:Halved"]}
    runs = (Run(isolate=False), Run(isolate=False, workers=2))
    found = [bare(audited(f"{file}:make_model", run, **options).rows) for run in runs]
    assert found[0] == found[1]


class Own(nn.Module):
    """A network whose class another process cannot import by its file."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(256, 2)

    def forward(self, x):
        return self.out(torch.sigmoid(x.flatten(1)))


@pytest.mark.slow
def test_a_network_is_sent_as_it_is():
    torch.manual_seed(0)
    network = Own()
    assert bare(audited(network, Run()).rows) == bare(audited(network, Run(workers=2)).rows)


class Held(Own):
    """A network that can be copied, but not sent."""

    def __deepcopy__(self, memo):
        made = Held()
        made.load_state_dict(self.state_dict())
        return made

    def __reduce__(self):
        raise TypeError("it holds a lock")


@pytest.mark.slow
def test_a_network_that_cannot_be_sent_is_refused():
    with pytest.raises(InputError, match=r"cannot be sent to another process \(it holds a lock\)"):
        audited(Held(), Run(workers=2))


@pytest.mark.slow
def test_a_job_whose_worker_ends_is_a_gap_that_the_same_call_fills(file, tmp_path, capsys):
    mark, out = tmp_path / "mark", tmp_path / "runs" / "a"
    options = {"attacks": [f"{file}:Dying(mark='{mark}')"], "defenses": ["LaplaceNoise(scale=0.01)"]}
    run = Run(workers=2, out=out, isolate=False)
    report = audited("LeNet('idlg')", run, **options)
    assert {(row.defense, row.knows_defense) for row in report.rows} == {
        ("NoDefense()", False), ("LaplaceNoise(scale=0.01)", False),
    }  # fmt: skip
    (note,) = [note for note in report.settings.notes if "were not attacked" in note]
    assert note.startswith("4 images of Dying(mark=")
    assert "its worker process was killed; if the memory ran out" in note
    assert "4 images of Dying(" in (out / "share/report.html").read_text()
    assert capsys.readouterr().err.count("This job was begun 3 times; the same command tries it again") == 4
    assert {cell.defense: cell.union.flags for cell in report.summary}["LaplaceNoise(scale=0.01)"][0] == "incomplete"
    assert reread(out).settings.gaps == report.settings.gaps
    mark.touch()
    again = audited("LeNet('idlg')", run, **options)
    whole = audited("LeNet('idlg')", Run(isolate=False), **options)
    assert not again.settings.gaps
    assert bare(again.rows) == bare(whole.rows)


def words(folder: Path, out: Path) -> list[str]:
    options = "--attack iDLG(steps=4) --attack DLG(steps=4) --draws 2 --images 3 --size 16 --memory 1e-6 --quiet"
    return ["audit", str(folder), "--model", "LeNet('idlg')", *options.split(), "--out", str(out)]


@pytest.mark.slow
def test_a_killed_driver_or_worker_costs_no_row(folder, tmp_path):
    """First a worker is killed, then the driver, each after some more rows; another call ends the audit inline."""
    whole, out = tmp_path / "runs" / "whole", tmp_path / "runs" / "killed"
    assert main(words(folder, whole)) == 0
    path = out / "share/findings.jsonl"

    def count() -> int:
        return path.read_bytes().count(b"\n") if path.exists() else 0

    # A real process: one that is forked from this one would share its server for new processes.
    command = [sys.executable, "-m", "medpfl", *words(folder, out), "--workers", "2"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        for rows, victims in ((3, workers_of), (6, lambda pid: [pid])):
            while count() < rows:
                assert process.poll() is None
                time.sleep(0.01)
            os.kill(victims(process.pid)[0], signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert main(words(folder, out)) == 0
    ended, undisturbed = (sorted(read_rows(place / "share/findings.jsonl"), key=order) for place in (out, whole))
    assert len(undisturbed) == 2 + 2 * 2 * 3
    assert plain(ended) == plain(undisturbed)


def order(row: medpfl.Finding) -> tuple:
    return row.control, row.attack, row.draw, row.stack, row.position


def workers_of(driver: int) -> list[int]:
    """Return the workers of a process: the children of its child, the server that forks them."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = stat.read_text().rpartition(")")[2].split()[1]
            children.setdefault(int(parent), []).append(int(stat.parent.name))
    return [pid for child in children.get(driver, []) for pid in children.get(child, [])]
