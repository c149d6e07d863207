"""Progress on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from medpfl.auditing.store import JobKey
from medpfl.core import progress
from medpfl.core.errors import listed

__all__ = ["files", "name_skipped", "rounds_of", "watching"]

_NAMED = 10
"""Skipped files that are named."""

During = Callable[[JobKey, int], AbstractContextManager[None]]


def name_skipped(skipped: Sequence[str], notes: Sequence[str] = ()) -> None:
    """Names files that could not be read, and what to doubt, on the terminal: the one place where names may be seen."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if skipped:
        print(f"{files(len(skipped))} could not be read and left out:{listed(skipped, _NAMED)}", file=sys.stderr)


def files(count: int) -> str:
    """``1 file``, ``2 files``."""
    return f"{count} file" + "s" * (count != 1)


@contextmanager
def watching(total: int, done: int, visible: bool) -> Iterator[During]:
    """A progress bar over images, with the time left; yields what to run each job within."""
    from rich.console import Console

    console = Console(stderr=True)
    if not (visible and console.is_terminal):
        yield lambda job, images: nullcontext()
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("audit", total=total, completed=done)
        finished = done

        @contextmanager
        def during(job: JobKey, images: int) -> Iterator[None]:
            nonlocal finished
            before = finished
            bar.update(task, description=f"{job.attack} x {job.control or job.defense}")
            with progress.listening(lambda share: bar.update(task, completed=before + int(share * images))):
                yield
            finished += images
            bar.update(task, completed=finished)

        yield during


def rounds_of(first: int, last: int, visible: bool) -> Iterator[int]:
    """The rounds from `first` to `last`, with a progress bar and the time left."""
    from rich.console import Console

    console = Console(stderr=True)
    if not (visible and console.is_terminal):
        yield from range(first, last + 1)
        return
    from rich.progress import track

    yield from track(range(first, last + 1), "train", console=console, transient=True)
