"""``python -m benchmarks engines``: measure how much faster two workers are than one, and what an engine costs.

Each task runs inline, with one worker and with two, in turn, several times, each time from nothing. The overhead is
that of one worker process over the same work in this process. The efficiency is the throughput of two workers over
twice that of this process. Starting the workers counts; for audits, reading images and writing pages do not, and a
frontier counts as a whole. An audit of few short jobs shows the start most. ``BENCH_CLOCK=cpu``, for a machine that is
busy, counts the processor seconds of this process and of the busiest of each crew's workers: this process waits while
they compute, so on idle cores that is the time that passes.

``--costs`` prints the seconds per image of some attacks instead: an audit's jobs inline, controls included, divided by
their rows. docs/scale.md has them.
"""

from __future__ import annotations

import argparse
import os
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from benchmarks.memory import children, draw
from benchmarks.rows import columns, conditions, now
from benchmarks.scenes import available, held_out
from medpfl.auditing.execution import WORK, checked
from medpfl.auditing.isolating import Isolation
from medpfl.auditing.run import AuditCase
from medpfl.auditing.scoring import Scorer
from medpfl.auditing.work import Task, Work
from medpfl.core.experiments.experiment import Experiment
from medpfl.core.experiments.frontier import Frontier
from medpfl.core.experiments.groups import Cohort, Run, Victims
from medpfl.core.experiments.schedule import Schedule
from medpfl.core.plan import Plan
from medpfl.core.threat import HONEST
from medpfl.data.images import LabelledImages
from medpfl.engines.choice import engine_of, ready
from medpfl.engines.sending import packed
from medpfl.runs.study_key import study_index
from medpfl.tradeoff.run import perform_frontier

ENGINES = {
    "inline": Run(),
    "one": Run(engine="processes", workers=1),
    "two": Run(engine="processes", workers=2),
}
HEAD = columns(("task", -30), ("inline", 8), ("one", 8), ("two", 8), ("overhead", 9), ("efficiency", 11))
COSTS = columns(("model", -22), ("attack", -22), ("rows", 5), ("s/image", 9), ("from", 7), ("to", 7))
FRONTIER = "frontier, ConvNet"
_LOOK = 0.2
"""Seconds between two looks at the workers' processor time."""


@dataclass(frozen=True)
class Case:
    """An audit whose jobs are timed.

    Attributes:
        model, attack: specs.
        images: number of images.
        size: their side length.
        memory: GiB for a stack, which decides how many images a job holds.
    """

    model: str
    attack: str
    images: int
    size: int
    memory: float = Run.memory


TASKS = {
    "LeNet, iDLG": Case("LeNet('idlg')", "iDLG(steps=30)", 256, 32, 0.05),
    "ResNet-18, DeepRGAP": Case("ResNet(18)", "DeepRGAP", 4, 64, 1e-6),
}
PRICED = (
    Case("LeNet('idlg')", "iDLG", 16, 32),
    Case("ConvNet()", "GradInv(steps=100)", 8, 32),
    Case("ResNet(18)", "DeepRGAP", 2, 64),
)


def work_of(case: Case) -> Work:
    """Return the work of a case's audit, ready to run."""
    images, labels, classes = held_out(available()[0], min(case.images, 100), case.size)
    times = -(-case.images // len(images))
    data = LabelledImages(
        images=(images.repeat(times, 1, 1, 1))[: case.images],
        labels=labels.repeat(times)[: case.images],
        classes=tuple(f"class {k}" for k in range(classes)),
        names=tuple(f"image {i}" for i in range(case.images)),
        patients=(None,) * case.images,
    )
    audit = AuditCase(
        case.model, data, [case.attack], [], Plan(mode="eval"), HONEST, None, Victims(images=case.images),
        Experiment.criteria, Run(memory=case.memory),
    )  # fmt: skip
    with audit.scene() as (scenario, isolation, place):
        assert isinstance(isolation, Isolation)
        found = checked(scenario, isolation)
        index = study_index(None, scenario.data, scenario.source, place)
        return Work(found.scenario, Scorer(scenario.data, index), found.wrong_layer is not None)


class Clock:
    """The seconds that pass by `now` while the context lasts; if it is the processor's, workers' too (see above)."""

    def __init__(self) -> None:
        self.seconds, self._ended, self._crews = 0.0, Event(), list[dict[int, float]]()

    def __enter__(self) -> Clock:
        self.seconds = -now()
        self._watch = Thread(target=self._look, daemon=True)
        if now is time.process_time:
            self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += now()
        self._ended.set()
        if self._watch.is_alive():
            self._watch.join()
        self.seconds += self.of_workers

    @property
    def of_workers(self) -> float:
        """The processor seconds of each crew's busiest worker, together."""
        return sum(max(crew.values()) for crew in self._crews)

    def _look(self) -> None:
        while not self._ended.wait(_LOOK):
            self.note({pid: seconds for pid in children(*children(os.getpid())) if (seconds := _processor(pid))})
        self.seconds -= time.thread_time()  # this watch is no part of the work

    def note(self, used: dict[int, float]) -> None:
        """Note the processor seconds of the workers that are there, by process; other processes are another crew."""
        if used and not (self._crews and self._crews[-1].keys() & used.keys()):
            self._crews.append({})
        if used:
            self._crews[-1].update(used)


def _processor(pid: int) -> float:
    """Return the processor seconds of a process; 0 if it has ended."""
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def audited(work: Work, run: Run) -> float:
    """Return the seconds that an engine takes for all jobs of a work that has computed nothing yet."""
    tasks, fresh = [Task(number, len(job.groups)) for number, job in enumerate(work.jobs)], pickle.loads(packed(work))
    with ready(run, *WORK), Clock() as clock:
        for _ in engine_of(run).results(fresh, tasks):
            pass
    return clock.seconds


def compared(run: Run) -> float:
    """Return the seconds that an engine takes for a frontier with two settings and two seeds."""
    with tempfile.TemporaryDirectory() as root:
        draw(Path(root, "data"), 160)
        frontier = Frontier(
            data=f"{root}/data",
            model="ConvNet(width=16, depth=2)",
            defense=["LaplaceNoise(scale=0.001)", "TopK(keep=0.1)"],
            attack=["iDLG(steps=100)"],
            seeds=2,
            images=16,
            cohort=Cohort(size=32, clients=4),
            schedule=Schedule(rounds=40),
            run=Run(out=Path(root, "run"), engine=run.engine, workers=run.workers, numbers_only=True),
        )
        with Clock() as clock:
            perform_frontier(frontier)
        return clock.seconds


def measured(name: str) -> Callable[[Run], float]:
    """Return the function that times a task."""
    if name == FRONTIER:
        return compared
    work = work_of(TASKS[name])
    return lambda run: audited(work, run)


def costs(rounds: int) -> Iterator[str]:
    """Yield the lines of the table of costs: the median over the rounds, and the range."""
    yield COSTS
    for case in PRICED:
        work = work_of(case)
        rows = sum(job.rows for job in work.jobs)
        each = sorted(audited(work, ENGINES["inline"]) / rows for _ in range(rounds))
        middle = statistics.median(each)
        yield f"{case.model:<22}{case.attack:<22}{rows:>5}{middle:>9.2f}{each[0]:>7.2f}{each[-1]:>7.2f}"


def lines(chosen: argparse.Namespace, go_on: Callable[[], bool] = lambda: True) -> Iterator[str]:
    """Yield the table's lines: the median over the rounds."""
    yield conditions()
    if chosen.costs:
        yield from costs(chosen.rounds)
        return
    yield HEAD
    for name in chosen.tasks:
        if not go_on():
            yield f"{name:<30}not run: time is up"
            continue
        seconds = measured(name)
        with ready(ENGINES["one"], *WORK):  # the server that workers are forked from
            pass
        rounds: dict[str, list[float]] = {engine: [] for engine in ENGINES}
        for _ in range(chosen.rounds):
            for engine, taken in rounds.items():
                taken.append(seconds(ENGINES[engine]))
        inline, one, two = (statistics.median(taken) for taken in rounds.values())
        yield f"{name:<30}{inline:>8.1f}{one:>8.1f}{two:>8.1f}{one / inline - 1:>9.2f}{inline / two / 2:>11.2f}"


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks engines", description=__doc__)
    names = [*TASKS, FRONTIER]
    parser.add_argument("--rounds", type=int, default=3, help="times that each engine runs (%(default)s)")
    parser.add_argument("--tasks", nargs="+", choices=names, default=names, help="tasks (all)")
    parser.add_argument("--costs", action="store_true", help="seconds per image of some attacks instead")
    return parser.parse_args(arguments)
