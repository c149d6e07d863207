"""``python -m benchmarks kills``: kill parts of an audit at random moments, and compare its rows with undisturbed ones.

A small audit of drawn pictures runs as a program of its own, with two workers. At random moments, SIGKILL ends the
driver, a worker, or (``--engine ray``) the second node of a cluster on this machine, which then gets another one; or
``Ctrl-C`` (SIGINT) goes to all processes of the program, as a terminal sends it. The same command is repeated until the
audit ends by itself; then the next one begins. Except for nodes, each program with Ray starts a cluster of its own.

A row is *lost* if it is missing in the end, *twice* if it is there more than once, *redone* if it was in the file after
a kill and is not in the end, with the same seconds and date, and *changed* if it differs from the undisturbed audit's
in anything but these. A process is *left* if it is there two minutes after its program ended. The mark is 0 for each.
*Ended* and *gone* are the largest numbers of seconds from a kill of the driver, or Ctrl-C, to the end of the program
and of the last of its processes.
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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from benchmarks.memory import children, draw
from benchmarks.rows import columns
from medpfl.auditing.store import ROWS, read_rows
from medpfl.core.errors import InputError
from medpfl.runs.directory import known_in

_KILLS = {"driver": 20, "worker": 20, "node": 10, "ctrl-c": 10}
_WAITS = {"driver": 1.0, "worker": 0.25, "node": 0.25, "ctrl-c": 1.0}
"""Largest part of an undisturbed audit's time that passes before a kill; an audit survives several of some."""
_INTERRUPTED = 130
"""Exit status after Ctrl-C."""
_GRACE = 120.0
"""Seconds in which all processes of a program must end after it."""
_MARK = "MEDPFL_BENCHMARK_KILLS"
"""Environment variable by which a program's processes are found; each program has a value of its own."""
_PICTURES, _OPTIONS = 12, (
    "--model LeNet('idlg') --attack iDLG(steps=10) --attack DLG(steps=10) --defense GaussianNoise(scale=0.001) "
    "--images 4 --memory 1e-6 --quiet"
)  # fmt: skip
_LOOK = 0.02
"""Seconds between two looks at the audit."""
_HEAD = columns(
    ("engine", -12), ("killed", -8), ("kills", 7), ("commands", 10), ("audits", 8), ("rows", 7), ("lost", 6),
    ("twice", 7), ("changed", 9), ("redone", 8), ("left", 6), ("ended", 7), ("gone", 6),
)  # fmt: skip
_WRONG = ("rows", "lost", "twice", "changed", "redone", "left")

Victims = Callable[[int], list[int]]
"""Returns the processes to choose from, by the process id of the audit."""


@dataclass
class Tally:
    """What was done and found.

    Attributes:
        kills, commands, audits: numbers of kills, of started programs and of audits that ended.
        found: numbers of rows, of wrong ones, and of processes that were left.
        ended, gone: largest numbers of seconds from a kill that ends a program to its end and to that of its processes.
    """

    kills: int = 0
    commands: int = 0
    audits: int = 0
    found: Counter[str] = field(default_factory=Counter)
    ended: float = 0.0
    gone: float = 0.0

    def line(self, engine: str, killed: str) -> str:
        """Return the table's line."""
        counts = [self.found[name] for name in _WRONG]
        head = f"{engine:<12}{killed:<8}{self.kills:>7}{self.commands:>10}{self.audits:>8}"
        middle = "".join(f"{count:>{width}}" for count, width in zip(counts, (7, 6, 7, 9, 8, 6), strict=True))
        return head + middle + (f"{self.ended:>7.1f}{self.gone:>6.1f}" if self.gone else "")


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


def ended(process: subprocess.Popen[bytes], chance: random.Random | None = None) -> bool:
    """Kill a program, or if `chance` is ``None`` interrupt it and all its processes by Ctrl-C; wait for its end."""
    if chance is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
    else:
        kill([process.pid], chance)
    process.wait()
    return True


class Audit:
    """An audit as a program, in a directory that it may continue.

    Args:
        folder: the pictures.
        out: the run directory.
        engine: its engine; ``"inline"`` for one that is not disturbed.
    """

    def __init__(self, folder: Path, out: Path, engine: str) -> None:
        workers = [] if engine == "inline" else ["--workers", "2"]
        self.out, self.mark = out, f"{_MARK}={out}"
        self.command = [sys.executable, "-m", "medpfl", "audit", str(folder), *_OPTIONS.split(), "--engine", engine]
        self.command += [*workers, "--out", str(out)]

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """Start the program, and yield it as soon as its jobs begin, or it has ended."""
        about, (name, _, value) = self.out / "run.json", self.mark.partition("=")
        before = about.stat().st_mtime_ns if about.exists() else 0
        with (
            TemporaryFile() as told,  # no pipe, which any process that is left would keep open
            subprocess.Popen(
                self.command,
                stdout=subprocess.DEVNULL,
                stderr=told,
                env={**os.environ, name: value},
                start_new_session=True,  # Ctrl-C goes to a whole group of processes
                preexec_fn=hear_interrupts,  # noqa: PLW1509 (no thread runs here)
            ) as process,
        ):
            while process.poll() is None and (not about.exists() or about.stat().st_mtime_ns == before):
                time.sleep(_LOOK)
            yield process
            process.wait()
            told.seek(0)
            said = told.read().decode()
        if process.returncode not in (0, -signal.SIGKILL, _INTERRUPTED):
            raise InputError(f"the audit ended with status {process.returncode}: {said[-2000:]}")

    def left(self) -> list[int]:
        """Return the processes of this program, by their environment."""
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if self.mark.encode() in environ.read_bytes().split(b"\0"):
                    found.append(int(environ.parent.name))
        return found

    def stored(self) -> list[dict[str, Any]]:
        """Return the rows."""
        path = self.out / ROWS
        return [row.to_dict() for row in read_rows(path)] if path.exists() else []

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows, without seconds and dates."""
        return [
            {name: value for name, value in row.items() if name not in ("seconds", "date")} for row in self.stored()
        ]


def hear_interrupts() -> None:
    """Restore the default handler: a shell's background job ignores interrupts, and so would its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
    audits: Iterator[Audit],
    kills: int,
    seconds: float,
    end: Callable[[subprocess.Popen[bytes]], bool],
    chance: random.Random,
    tally: Tally,
) -> Iterator[Audit]:
    """Run audits until so many kills are done, and yield those that have ended without a gap.

    Args:
        audits: the audits.
        kills: number of kills.
        seconds: largest wait before a kill.
        end: function that kills something of a program; returns False if nothing was there.
        chance: the moments.
        tally: where kills, commands, processes that are left and rows that were redone are counted.
    """
    audit, kept = next(audits), list[dict[str, Any]]()
    while True:
        since = None
        with audit.running() as process:
            while process.poll() is None:
                moment = time.monotonic() + chance.uniform(0, seconds)
                while process.poll() is None and (tally.kills >= kills or time.monotonic() < moment):
                    time.sleep(_LOOK)
                began = time.monotonic()
                if process.poll() is None and end(process):
                    tally.kills += 1
                    if process.returncode is not None:
                        since = began
                        tally.ended = max(tally.ended, time.monotonic() - began)
        tally.commands += 1
        _see_off(audit, since, tally)
        done = process.returncode == 0 and not gaps(audit)
        if done:
            stored = audit.stored()
            tally.found["redone"] += sum(row not in stored for row in kept)
            yield audit
            if tally.kills >= kills:
                return
        kept = [] if done else audit.stored()
        audit = next(audits) if done else audit


def _see_off(audit: Audit, since: float | None, tally: Tally) -> None:
    """Wait until all processes of a program have ended, and note how long that took, and those that are left."""
    began = time.monotonic()
    while (left := audit.left()) and time.monotonic() < began + _GRACE:
        time.sleep(_LOOK)
    if since is not None:
        tally.gone = max(tally.gone, time.monotonic() - since)
    tally.found["left"] += len(left)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


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
    with tempfile.TemporaryDirectory() as root, ExitStack() as stack:
        draw(Path(root, "data"), _PICTURES)
        cluster: Any = None

        def another_node() -> bool:
            cluster.remove_node(chance.choice(list(cluster.worker_nodes)), allow_graceful=False)
            cluster.add_node(num_cpus=1)
            return True

        workers = of_cluster if chosen.engine == "ray" else lambda driver: children(*children(driver))
        ends: dict[str, Callable[[subprocess.Popen[bytes]], bool]] = {
            "driver": lambda driver: ended(driver, chance),
            "worker": lambda driver: kill(workers(driver.pid), chance),
            "node": lambda _: another_node(),
            "ctrl-c": ended,
        }
        whole, timed = (next(numbered(Path(root), f"whole-{engine}", engine)) for engine in ("inline", chosen.engine))
        for audit in (whole, timed):
            with audit.running() as process:
                began = time.monotonic()
                process.wait()
            seconds = time.monotonic() - began
        expected = whole.rows()
        for killed in sorted(chosen.kill, key="node".__eq__):  # last, since what runs in its cluster starts none
            if not go_on():
                yield f"{chosen.engine:<12}{killed:<8}not run: time is up"
                continue
            if killed == "node":
                cluster = stack.enter_context(nodes())
            tally, kills = Tally(), _KILLS[killed] if chosen.kills is None else chosen.kills
            audits = numbered(Path(root), killed, chosen.engine)
            for audit in disturbed(audits, kills, _WAITS[killed] * seconds, ends[killed], chance, tally):
                tally.audits += 1
                tally.found += compared(audit.rows(), expected)
            yield tally.line(chosen.engine, killed)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks kills", description=__doc__)
    parser.add_argument("--engine", choices=("processes", "ray"), default="processes", help="engine (%(default)s)")
    parser.add_argument("--kill", nargs="+", choices=list(_KILLS), help="what to kill (all; node: with ray only)")
    parser.add_argument("--kills", type=int, help="number of kills of each (20; nodes and Ctrl-C: 10)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (%(default)s)")
    chosen = parser.parse_args(arguments)
    if chosen.kill is None:
        chosen.kill = [name for name in _KILLS if name != "node" or chosen.engine == "ray"]
    if "node" in chosen.kill and chosen.engine != "ray":
        parser.error("--kill node needs --engine ray")
    return chosen
