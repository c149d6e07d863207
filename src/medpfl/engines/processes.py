"""The engine that computes tasks in several processes of this machine. Does not import torch.

Each worker is a `ProcessPoolExecutor` of its own, with one process and one task at a time. An executor is lost with all
its tasks if a process ends, so a shared one would lose its neighbors' tasks too.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.sharedctypes import RawArray
from types import ModuleType
from typing import Any

from medpfl.core.messages import Speech
from medpfl.engines.engine import TRIES, Again, Engine, Lost, Results, Watch, Work
from medpfl.engines.sending import packed
from medpfl.engines.worker import BEGUN, begin, perform

__all__ = ["Processes", "warm"]

_KILLED, _UNKNOWN = -9, 255
"""Exit statuses: by SIGKILL, as if memory runs out; and what `multiprocessing` says if it could not see the end."""
_TICK = 0.2
"""Seconds between two looks at the workers' progress."""


def warm(modules: Sequence[str]) -> None:
    """Start the process from which workers are forked, if this platform has one; it imports some modules meanwhile.

    It starts before any data is read, so no worker begins with a copy of this process's memory.
    """
    if _method() == "forkserver":
        from multiprocessing import forkserver

        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(modules))
        forkserver.ensure_running()


def _method() -> str:
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


class Processes(Engine):
    """Computes tasks in several processes.

    Args:
        workers: number of processes.
        threads: number of torch threads in each.
    """

    def __init__(self, workers: int, threads: int = 1) -> None:
        self.workers, self.threads = workers, threads

    def results(self, work: Work, tasks: Sequence[Any], watch: Watch | None = None) -> Results:
        """Compute tasks; see `Engine.results`."""
        if not tasks:
            return
        context = multiprocessing.get_context(_method())
        payload, shares, speech = packed(work), RawArray("d", len(tasks)), Speech.now()

        def new() -> _Worker:
            return _Worker(context, lambda alive: (payload, self.threads, shares, alive, speech))

        tasks, todo, tries = list(tasks), deque(range(len(tasks))), [0] * len(tasks)
        told = _Told(shares, watch or Watch())
        idle, busy = [new() for _ in range(min(self.workers, len(tasks)))], dict[Future[Any], tuple[int, _Worker]]()
        try:
            while todo or busy:
                while todo and idle:
                    place, worker = todo.popleft(), idle.pop()
                    tries[place] += 1
                    busy[worker.submit(place, tasks[place])] = (place, worker)
                done, _ = wait(busy, _TICK, FIRST_COMPLETED)
                told(place for place, _ in busy.values())
                for future in done:
                    place, worker = busy[future]
                    try:
                        result = future.result()
                    except BrokenProcessPool:
                        result, worker = Lost(worker.end()), new()
                    del busy[future]
                    idle.append(worker)
                    if isinstance(result, Lost) and tries[place] < TRIES:
                        todo.append(place)
                        continue
                    if isinstance(result, Again):
                        tasks[place], tries[place] = result.task, 0
                        todo.append(place)
                    else:
                        told.end(place)
                    yield place, result
        finally:
            workers = (*idle, *(worker for _, worker in busy.values()))
            for worker in workers:  # all at once: one after the other, each would wait for its predecessors' ends
                worker.kill()
            for worker in workers:
                worker.end()


class _Told:
    """Tells a watch what the workers noted in their shared array."""

    def __init__(self, shares: Any, watch: Watch) -> None:
        self.shares, self.watch = shares, watch
        self.begun: set[int] = set()

    def __call__(self, running: Iterator[int]) -> None:
        for place in running:
            share = self.shares[place]
            if share >= BEGUN and place not in self.begun:
                self.begun.add(place)
                self.watch.begin(place)
            if place in self.begun:
                self.watch.report(place, share)

    def end(self, place: int) -> None:
        if place not in self.begun:
            self.watch.begin(place)
        self.watch.end(place)


class _Worker:
    """An executor with one process, which starts with its first task."""

    def __init__(self, context: Any, arguments: Callable[[Any], tuple[Any, ...]]) -> None:
        self._theirs, self._alive = context.Pipe(duplex=False)
        self._executor = ProcessPoolExecutor(1, context, begin, arguments(self._theirs))
        self._process: Any = None

    def submit(self, place: int, task: Any) -> Future[Any]:
        """Give it a task."""
        try:
            if self._process is not None:
                return self._executor.submit(perform, place, task)
            before = set(multiprocessing.active_children())
            with _without_main():
                future = self._executor.submit(perform, place, task)
            self._process = next(iter(set(multiprocessing.active_children()) - before), None)
        except BrokenProcessPool as error:  # it ended between two tasks
            future = Future[Any]()
            future.set_exception(error)
        return future

    def kill(self) -> None:
        """End the process at once, and do not wait."""
        if self._process is not None:
            self._process.kill()

    def end(self) -> str:
        """End the process at once; return how it ended, in words, if that was before."""
        why = _how(None if self._process is None else self._process.exitcode)
        self.kill()
        self._alive.close()
        self._theirs.close()
        self._executor.shutdown(cancel_futures=True)
        return why


def _how(status: int | None) -> str:
    if status is not None and status not in (_KILLED, _UNKNOWN):
        return f"its worker process ended with status {status}"
    return "its worker process was killed; if the memory ran out, use fewer --workers, or a lower --memory"


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the main program while a process starts, which would otherwise run it again.

    Workers get all they need from `packed`. A script without ``if __name__ == "__main__"`` would start itself anew in
    each of them.
    """
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
