"""``python -m benchmarks kills``: kill parts of an audit at random moments, and compare its rows with undisturbed ones.

A small audit of drawn pictures runs as a program of its own, with two workers. At random moments, SIGKILL ends the
driver, a worker, or (``--engine ray``) the second node of a cluster on this machine, which then gets another one. The
same command is repeated until the audit ends by itself; then the next one begins. A row is *lost* if it is missing in
the end, *twice* if it is there more than once, and *changed* if it differs from the undisturbed audit's in anything but
seconds and dates. The mark is 0 for each.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.memory import children, draw
from benchmarks.rows import columns
from medpfl.auditing.store import ROWS, read_rows
from medpfl.core.errors import InputError
from medpfl.runs.directory import known_in

_KILLS = {"driver": 20, "worker": 20, "node": 10}
_WAITS = {"driver": 1.0, "worker": 0.25, "node": 0.25}
"""Largest part of an undisturbed audit's time that passes before a kill; an audit survives several of the last two."""
_PICTURES, _OPTIONS = 12, (
    "--model LeNet('idlg') --attack iDLG(steps=10) --attack DLG(steps=10) --defense GaussianNoise(scale=0.001) "
    "--images 4 --memory 1e-6 --quiet"
)  # fmt: skip
_LOOK = 0.02
"""Seconds between two looks at the audit."""
_HEAD = columns(
    ("engine", -12), ("killed", -8), ("kills", 7), ("commands", 10), ("audits", 8), ("rows", 7), ("lost", 6),
    ("twice", 7), ("changed", 9),
)  # fmt: skip

Victims = Callable[[int], list[int]]
"""Returns the processes to choose from, by the process id of the audit."""


@dataclass
class Tally:
    """What was done and found.

    Attributes:
        kills, commands, audits: numbers of kills, of started programs and of audits that ended.
        rows, lost, twice, changed: numbers of rows, and of wrong ones.
    """

    kills: int = 0
    commands: int = 0
    audits: int = 0
    found: Counter[str] = field(default_factory=Counter)

    def line(self, engine: str, killed: str) -> str:
        """Return the table's line."""
        counts = [self.found[name] for name in ("rows", "lost", "twice", "changed")]
        head = f"{engine:<12}{killed:<8}{self.kills:>7}{self.commands:>10}{self.audits:>8}"
        return head + "".join(f"{count:>{width}}" for count, width in zip(counts, (7, 6, 7, 9), strict=True))


def of_cluster(_: int) -> list[int]:
    """Return all busy worker processes of the clusters that this program started."""
    every, last = list[int](), [os.getpid()]
    while last := children(*last):
        every += last
    found = []
    for pid in every:
        with suppress(OSError):
            if (name := Path(f"/proc/{pid}/cmdline").read_bytes()).startswith(b"ray::") and b"IDLE" not in name:
                found.append(pid)
    return found


def kill(pids: list[int], chance: random.Random) -> bool:
    """Kill one of some processes; return False if there is none."""
    if pids:
        with suppress(ProcessLookupError):
            os.kill(chance.choice(pids), signal.SIGKILL)
            return True
    return False


class Audit:
    """An audit as a program, in a directory that it may continue.

    Args:
        folder: the pictures.
        out: the run directory.
        engine: its engine; ``"inline"`` for one that is not disturbed.
    """

    def __init__(self, folder: Path, out: Path, engine: str) -> None:
        workers = [] if engine == "inline" else ["--workers", "2"]
        self.out = out
        self.command = [sys.executable, "-m", "medpfl", "audit", str(folder), *_OPTIONS.split(), "--engine", engine]
        self.command += [*workers, "--out", str(out)]

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """Start the program, and yield it as soon as its jobs begin, or it has ended."""
        about = self.out / "run.json"
        before = about.stat().st_mtime_ns if about.exists() else 0
        with subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            while process.poll() is None and (not about.exists() or about.stat().st_mtime_ns == before):
                time.sleep(_LOOK)
            yield process
            assert process.stderr is not None
            said = process.stderr.read().decode()
        if process.returncode not in (0, -signal.SIGKILL):
            raise InputError(f"the audit ended with status {process.returncode}: {said[-2000:]}")

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows, without seconds and dates."""
        rows = [row.to_dict() for row in read_rows(self.out / ROWS)]
        return [{name: value for name, value in row.items() if name not in ("seconds", "date")} for row in rows]


def numbered(root: Path, name: str, engine: str) -> Iterator[Audit]:
    """Yield audits, each with a run directory of its own; all share the key beside them, and so the images' names."""
    for number in count():
        yield Audit(root / "data", root / "runs" / f"{name}-{number}", engine)


def place(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return what names a row."""
    names = ("control", "attack", "defense", "draw", "stack", "victim", "position", "grants")
    return tuple(str(row[name]) for name in names)


def compared(found: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> Counter[str]:
    """Return the numbers of rows, and of wrong ones."""
    counts, known = Counter(map(place, found)), {place(row): row for row in expected}
    return Counter(
        rows=len(found),
        lost=len(known.keys() - counts.keys()),
        twice=sum(count - 1 for count in counts.values()),
        changed=sum(known.get(place(row)) != row for row in found),
    )


def disturbed(
    audits: Iterator[Audit], kills: int, seconds: float, end: Callable[[int], bool], chance: random.Random
) -> Iterator[tuple[Audit | None, bool]]:
    """Run audits until so many kills are done; for each kill yield ``(None, True)``, for each command ``(.., False)``.

    A command comes with its audit if that has ended without a gap, else with ``None``.

    Args:
        audits: the audits.
        kills: number of kills.
        seconds: largest wait before a kill.
        end: function that kills something of the program with a process id; returns False if nothing was there.
        chance: the moments.
    """
    done, audit = 0, next(audits)
    while True:
        with audit.running() as process:
            while process.poll() is None:
                moment = time.monotonic() + chance.uniform(0, seconds)
                while process.poll() is None and (done >= kills or time.monotonic() < moment):
                    time.sleep(_LOOK)
                killed = process.poll() is None and end(process.pid)
                done += killed
                if killed:
                    yield None, True
        ended = process.returncode == 0 and not gaps(audit)
        yield audit if ended else None, False
        if ended and done >= kills:
            return
        audit = next(audits) if ended else audit


def gaps(audit: Audit) -> bool:
    """Return True if a job's worker was killed so often that the audit left it out; the same command fills the gap."""
    return bool(known_in(audit.out).get("settings", {}).get("gaps"))


@contextmanager
def nodes() -> Iterator[Any]:
    """Start a Ray head and a second node, each with one core, for all programs that this one starts."""
    from ray.cluster_utils import Cluster  # type: ignore[import-not-found]  (an extra)

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    started.add_node(num_cpus=1)
    os.environ["RAY_ADDRESS"] = started.address
    try:
        yield started
    finally:
        del os.environ["RAY_ADDRESS"]
        started.shutdown()


def lines(chosen: argparse.Namespace, go_on: Callable[[], bool] = lambda: True) -> Iterator[str]:
    """Yield the table's lines."""
    yield _HEAD
    chance = random.Random(chosen.seed)
    with tempfile.TemporaryDirectory() as root, nodes() if chosen.engine == "ray" else nullcontext() as cluster:
        draw(Path(root, "data"), _PICTURES)

        def another_node() -> bool:
            assert cluster is not None
            cluster.remove_node(chance.choice(list(cluster.worker_nodes)), allow_graceful=False)
            cluster.add_node(num_cpus=1)
            return True

        workers = of_cluster if chosen.engine == "ray" else lambda driver: children(*children(driver))
        ends: dict[str, Callable[[int], bool]] = {
            "driver": lambda driver: kill([driver], chance),
            "worker": lambda driver: kill(workers(driver), chance),
            "node": lambda _: another_node(),
        }
        whole = next(numbered(Path(root), "whole", "inline"))
        with whole.running() as process:
            began = time.monotonic()
            process.wait()
        seconds, expected = time.monotonic() - began, whole.rows()
        for killed in chosen.kill:
            if not go_on():
                yield f"{chosen.engine:<12}{killed:<8}not run: time is up"
                continue
            tally, kills = Tally(), _KILLS[killed] if chosen.kills is None else chosen.kills
            audits = numbered(Path(root), killed, chosen.engine)
            for audit, was in disturbed(audits, kills, _WAITS[killed] * seconds, ends[killed], chance):
                tally.kills += was
                tally.commands += not was
                if audit is not None:
                    tally.audits += 1
                    tally.found += compared(audit.rows(), expected)
            yield tally.line(chosen.engine, killed)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks kills", description=__doc__)
    parser.add_argument("--engine", choices=("processes", "ray"), default="processes", help="engine (%(default)s)")
    parser.add_argument("--kill", nargs="+", choices=list(_KILLS), help="what to kill (all; node: with ray only)")
    parser.add_argument("--kills", type=int, help="number of kills of each (20; nodes: 10)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (%(default)s)")
    chosen = parser.parse_args(arguments)
    if chosen.kill is None:
        chosen.kill = [name for name in _KILLS if name != "node" or chosen.engine == "ray"]
    if "node" in chosen.kill and chosen.engine != "ray":
        parser.error("--kill node needs --engine ray")
    return chosen
