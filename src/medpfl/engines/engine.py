"""The role of an engine, and the one that computes in this process. Does not import torch.

A task is computed by a callable object, the work, from a value. The work holds all that the tasks share, and a task's
result depends on nothing else, so it is the same in every engine and in any order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

from medpfl.core.progress import listening

__all__ = ["TRIES", "Again", "Crew", "Engine", "Inline", "Lost", "Results", "Watch", "Work"]

TRIES = 3
"""Number of times that a task is begun before it is given up, if its worker ends each time."""

Work = Callable[[Any], Any]
Results = Generator[tuple[int, Any], None, None]


class Lost(NamedTuple):
    """The result of a task whose worker ended each time.

    Attributes:
        why: how the worker ended, in words.
    """

    why: str


class Again(NamedTuple):
    """The result of work that could not compute a task: another task, which the engine computes in its place.

    The engine yields it too. The caller must save the new task before it asks for the next result, so that a killed run
    splits the same way.

    Attributes:
        task: the other task.
    """

    task: Any


class Watch:
    """A listener for the state of tasks, by their place in the sequence; this one ignores it."""

    def begin(self, place: int) -> None:
        """Note that a task has begun. It may begin again: as another task, or if its worker ended."""

    def report(self, place: int, share: float, said: Callable[[], str] = str) -> None:
        """Note that a share (0 to 1) of a task is done."""

    def end(self, place: int) -> None:
        """Note that a task has a result."""


class Crew(ABC):
    """Workers that keep a work, and compute one sequence of tasks after the other."""

    @abstractmethod
    def results(self, tasks: Sequence[Any], watch: Watch | None = None) -> Results:
        """Yield each task's place and result as it is computed, or `Lost`, or `Again` and the result later.

        The next sequence may begin when this one has ended.

        Raises:
            Exception: what the work raises for a task; tasks that were not yet yielded are dropped.
        """


class Engine(ABC):
    """Computes tasks."""

    @abstractmethod
    def crew(self, work: Work) -> AbstractContextManager[Crew]:
        """Yield workers for a work; they end with the context, at once if a sequence of tasks has not ended."""

    def results(self, work: Work, tasks: Sequence[Any], watch: Watch | None = None) -> Results:
        """Yield what `Crew.results` yields, for one sequence of tasks. Closing the iterator ends all workers."""
        if tasks:
            with self.crew(work) as crew:
                yield from crew.results(tasks, watch)


class Inline(Engine):
    """Computes one task after the other in this process."""

    @contextmanager
    def crew(self, work: Work) -> Iterator[Crew]:
        """Yield this process; see `Engine.crew`."""
        yield _Here(work)


class _Here(Crew):
    def __init__(self, work: Work) -> None:
        self.work = work

    def results(self, tasks: Sequence[Any], watch: Watch | None = None) -> Results:
        watch, todo = watch or Watch(), deque(enumerate(tasks))
        while todo:
            place, task = todo.popleft()
            watch.begin(place)
            with listening(lambda share, said, place=place: watch.report(place, share, said)):
                result = self.work(task)
            if isinstance(result, Again):
                todo.appendleft((place, result.task))
            else:
                watch.end(place)
            yield place, result
