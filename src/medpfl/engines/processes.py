"""The engine that computes tasks in several processes of this machine. Does not import torch.

Each worker is a `ProcessPoolExecutor` of its own, with one process and one task at a time. An executor is lost with all
its tasks if a process ends, so a shared one would lose its neighbors' tasks too.
"""

from __future__ import annotations

import multiprocessing
import pickle
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.sharedctypes import RawValue
from types import ModuleType
from typing import Any

from medpfl.core.messages import Speech
from medpfl.engines.engine import TRIES, Again, Crew, Engine, Lost, Results, Watch, Work
from medpfl.engines.sending import packed, shipped
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

    @contextmanager
    def crew(self, work: Work) -> Iterator[Crew]:
        """Yield processes; see `Engine.crew`."""
        crew = _Crew(work, self.workers, self.threads)
        try:
            yield crew
        finally:
            crew.end()


class _Crew(Crew):
    def __init__(self, work: Work, most: int, threads: int) -> None:
        self.work, self.most, self.threads, self.speech = work, most, threads, Speech.now()
        self.held = list[Any]()
        self.payload = packed(work, self.held)
        self.workers: list[_Worker] = []

    def results(self, tasks: Sequence[Any], watch: Watch | None = None) -> Results:
        tasks, todo, tries = list(tasks), deque(range(len(tasks))), [0] * len(tasks)
        told, busy, idle = _Told(watch or Watch()), dict[Future[Any], tuple[int, _Worker]](), [*self.workers]
        idle += [self._new() for _ in range(min(self.most, len(tasks)) - len(idle))]
        while todo or busy:
            while todo and idle:
                place, worker = todo.popleft(), idle.pop()
                tries[place] += 1
                busy[worker.submit(tasks[place])] = (place, worker)
            if not self.held:  # all workers have it; without shared memory, it is as large as the images
                self.payload = b""
            done, _ = wait(busy, _TICK, FIRST_COMPLETED)
            told((place, worker.share.value) for place, worker in busy.values())
            for future in done:
                place, worker = busy[future]
                try:
                    result = pickle.loads(future.result())
                except BrokenProcessPool:
                    self.workers.remove(worker)
                    result, worker = Lost(worker.end()), self._new()
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

    def _new(self) -> _Worker:
        context, self.payload = multiprocessing.get_context(_method()), self.payload or packed(self.work, self.held)
        self.workers.append(
            _Worker(context, self.payload, lambda share, alive: (self.threads, share, alive, self.speech))
        )
        return self.workers[-1]

    def end(self) -> None:
        for worker in self.workers:  # all at once: one after the other, each would wait for its predecessors' ends
            worker.kill()
        for worker in self.workers:
            worker.end()


class _Told:
    """Tells a watch what the workers noted in their shared numbers."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.begun: set[int] = set()

    def __call__(self, running: Iterator[tuple[int, float]]) -> None:
        for place, share in running:
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
    """An executor with one process, which starts with its first task.

    Args:
        context: from `multiprocessing`.
        payload: the work, which goes through the pipe: as an argument, it would be copied once more.
        arguments: what `begin` gets, from the shared number and the pipe.

    Attributes:
        share: shared number with the share of its task that is done.
    """

    def __init__(self, context: Any, payload: bytes, arguments: Callable[[Any, Any], tuple[Any, ...]]) -> None:
        self.share, self.payload = RawValue("d", 0.0), payload
        self._theirs, self._alive = context.Pipe(duplex=False)
        self._executor = ProcessPoolExecutor(1, context, begin, arguments(self.share, self._theirs))
        self._process: Any = None

    def submit(self, task: Any) -> Future[Any]:
        """Give it a task."""
        self.share.value, sent = 0.0, shipped(task)
        try:
            if self._process is not None:
                return self._executor.submit(perform, sent)
            before = set(multiprocessing.active_children())
            with _without_main():
                future = self._executor.submit(perform, sent)
            self._process = next(iter(set(multiprocessing.active_children()) - before), None)
            self._theirs.close()  # the worker has its own: if it ends, nobody reads, and sending ends too
            with suppress(OSError):
                self._alive.send_bytes(self.payload)
            self.payload = b""
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
        if not self._theirs.closed:
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
