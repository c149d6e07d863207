"""``python -m benchmarks engines``: measure how much faster two workers are than one, and what an engine costs.

Each task runs inline, with one worker and with two, in turn, several times. The overhead is that of one worker process
over the same jobs in this process. The efficiency is the throughput of two workers over twice that of this process.
Starting the workers counts; reading images and writing pages do not. An audit of few short jobs shows the start most.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.rows import columns, conditions, now
from benchmarks.scenes import available, held_out
from medpfl.auditing.execution import WORK, checked
from medpfl.auditing.isolating import Isolation
from medpfl.auditing.run import AuditCase
from medpfl.auditing.scoring import Scorer
from medpfl.auditing.work import Task, Work
from medpfl.core.experiments.experiment import Experiment
from medpfl.core.experiments.groups import Run, Victims
from medpfl.core.plan import Plan
from medpfl.core.threat import HONEST
from medpfl.data.images import LabelledImages
from medpfl.engines.choice import engine_of, ready
from medpfl.runs.study_key import study_index

ENGINES = {
    "inline": Run(),
    "one": Run(engine="processes", workers=1),
    "two": Run(engine="processes", workers=2),
}
HEAD = columns(("task", -30), ("jobs", 5), ("inline", 8), ("one", 8), ("two", 8), ("overhead", 9), ("efficiency", 11))


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
    memory: float


TASKS = {
    "LeNet, iDLG": Case("LeNet('idlg')", "iDLG(steps=30)", 256, 32, 0.05),
    "ResNet-18, DeepRGAP": Case("ResNet(18)", "DeepRGAP", 4, 64, 1e-6),
}


def work_of(task: Case) -> Work:
    """Return the work of a task's audit, ready to run."""
    images, labels, classes = held_out(available()[0], min(task.images, 100), task.size)
    times = -(-task.images // len(images))
    data = LabelledImages(
        images=(images.repeat(times, 1, 1, 1))[: task.images],
        labels=labels.repeat(times)[: task.images],
        classes=tuple(f"class {k}" for k in range(classes)),
        names=tuple(f"image {i}" for i in range(task.images)),
        patients=(None,) * task.images,
    )
    case = AuditCase(
        task.model, data, [task.attack], [], Plan(mode="eval"), HONEST, None, Victims(images=task.images),
        Experiment.criteria, Run(memory=task.memory),
    )  # fmt: skip
    with case.scene() as (scenario, isolation, place):
        assert isinstance(isolation, Isolation)
        found = checked(scenario, isolation)
        index = study_index(None, scenario.data, scenario.source, place)
        return Work(found.scenario, Scorer(scenario.data, index), found.wrong_layer is not None)


def seconds(work: Work, run: Run) -> float:
    """Return the seconds that an engine takes for all jobs."""
    with ready(run, *WORK):
        began = now()
        tasks = [Task(number, len(job.groups)) for number, job in enumerate(work.jobs)]
        for _ in engine_of(run).results(work, tasks):
            pass
        return now() - began


def lines(chosen: argparse.Namespace, go_on: Callable[[], bool] = lambda: True) -> Iterator[str]:
    """Yield the table's lines: the median over the rounds."""
    yield conditions()
    yield HEAD
    for name in chosen.tasks:
        if not go_on():
            yield f"{name:<30}not run: time is up"
            continue
        work = work_of(TASKS[name])
        seconds(work, ENGINES["one"])  # the first process starts the server that the others are forked from
        rounds: dict[str, list[float]] = {engine: [] for engine in ("inline", "one", "two")}
        for _ in range(chosen.rounds):
            for engine, taken in rounds.items():
                taken.append(seconds(work, ENGINES[engine]))
        inline, one, two = (statistics.median(taken) for taken in rounds.values())
        row = f"{name:<30}{len(work.jobs):>5}{inline:>8.1f}{one:>8.1f}{two:>8.1f}"
        yield f"{row}{one / inline - 1:>9.2f}{inline / two / 2:>11.2f}"


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks engines", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="times that each engine runs (%(default)s)")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), help="tasks (all)")
    return parser.parse_args(arguments)
