"""The choice of an engine by the options of a run. Does not import torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from medpfl.core.experiments.groups import Run
from medpfl.core.messages import say
from medpfl.engines.engine import Engine, Inline
from medpfl.engines.processes import Processes, warm
from medpfl.engines.threads import threads

__all__ = ["cores", "described", "engine_of", "ready", "workers_of"]


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers_of(run: Run) -> int:
    """Return the number of tasks that a run's engine computes at the same time; for a cluster, a guess."""
    if run.engine == "inline":
        return 1
    return run.workers or (1 if run.engine is None else cores())


def _name(run: Run) -> str:
    return run.engine or ("processes" if workers_of(run) > 1 else "inline")


@contextmanager
def ready(run: Run, *modules: str) -> Iterator[None]:
    """Set the number of torch threads while the context lasts, and start what a run's engine needs before data is read.

    Args:
        run: the run.
        modules: modules that its workers will import.

    Raises:
        InputError: the engine cannot be used here.
    """
    if isinstance(engine_of(run), Processes):
        warm(modules)
    if run.engine != "ray":
        _note(workers_of(run), run.threads, cores())
    with threads(run.threads):
        yield


@cache
def _note(workers: int, threads: int, cores: int) -> None:
    """Say once if workers have too few processor cores."""
    if workers * threads > cores:
        each = f" with {threads} threads each" if threads > 1 else ""
        who = f"{workers} worker{'s' * (workers != 1)}{each}"
        say(f"note: {who} share {cores} processor cores, and slow each other down")


def described(run: Run) -> str:
    """Return a run's engine in words.

    >>> described(Run()), described(Run(workers=2)), described(Run(engine="ray", workers=4, threads=2))
    ('inline, 1 thread', 'processes, 2 workers, 1 thread each', 'ray, 4 workers, 2 threads each')
    """
    threads = f"{run.threads} thread{'s' * (run.threads != 1)}"
    count, name = workers_of(run), _name(run)
    if name == "inline":
        return f"inline, {threads}"
    if name == "ray" and run.workers is None:
        return f"ray, as many workers as the cluster has room for, {threads} each"
    return f"{name}, {count} worker{'s' * (count != 1)}, {threads} each"


def engine_of(run: Run) -> Engine:
    """Return the engine of a run.

    Raises:
        InputError: Ray is asked for, but not installed.
    """
    name = _name(run)
    if name == "ray":
        from medpfl.engines.cluster import Cluster

        return Cluster(run.workers, run.threads, run.device)
    return Processes(workers_of(run), run.threads) if name == "processes" else Inline()
