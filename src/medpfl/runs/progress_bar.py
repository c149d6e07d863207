"""Progress on the terminal or in a log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from time import monotonic

from medpfl.core import progress
from medpfl.core.errors import listed, private
from medpfl.core.messages import say
from medpfl.runs.jobs import JobKey

__all__ = ["APART", "files", "name_skipped", "rounds_of", "watching"]

_NAMED = 10
"""Largest number of skipped files that are named."""
APART = 20.0
"""Minimum seconds between two progress lines."""

During = Callable[[JobKey, int], AbstractContextManager[None]]
Show = Callable[[str, int], None]
"""Callback with the current work and the amount finished."""


def name_skipped(skipped: Sequence[str], notes: Sequence[str] = ()) -> None:
    """Print notes on the data and the names of skipped files, or only their number if names may not be shown."""
    for note in notes:
        say(f"note: {note}")
    if skipped:
        names = private(f":{listed(skipped, _NAMED)}", " (--show-paths names them)")
        say(f"skipped {files(len(skipped))} that could not be read{names}")


def files(count: int) -> str:
    """Return ``1 file``, ``2 files`` and so on."""
    return f"{count} file" + "s" * (count != 1)


@contextmanager
def watching(total: int, done: int, visible: bool) -> Iterator[During]:
    """Show the number of finished images if `visible`; yield a context manager for each job."""
    if not visible:
        yield lambda job, images: nullcontext()
        return
    finished = done
    with _shown(total, done, "images") as show:

        @contextmanager
        def during(job: JobKey, images: int) -> Iterator[None]:
            nonlocal finished
            before, what = finished, f"{job.attack} x {job.control or job.defense}"
            show(what, before)
            with progress.listening(lambda share: show(what, before + int(share * images))):
                yield
            finished += images
            show(what, finished)

        yield during


def rounds_of(first: int, last: int, visible: bool) -> Iterator[int]:
    """Yield the rounds from `first` to `last`, and show the latest if `visible`."""
    if not visible:
        yield from range(first, last + 1)
        return
    with _shown(last, max(first - 1, 0), "rounds") as show:
        for number in range(first, last + 1):
            yield number
            show("train", number)


@contextmanager
def _shown(total: int, done: int, unit: str) -> Iterator[Show]:
    """Yield a progress callback: a bar with the remaining time on a terminal, plain lines in a pipe or a file."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(total, unit)
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
        yield lambda what, done: bar.update(task, description=what, completed=done)


class _Lines:
    """Progress as plain lines, at least `APART` seconds apart."""

    def __init__(self, total: int, unit: str) -> None:
        self.total, self.unit = total, unit
        self.began = self.latest = monotonic()

    def __call__(self, what: str, done: int) -> None:
        now = monotonic()
        if now - self.latest >= APART:
            self.latest = now
            passed = timedelta(seconds=int(now - self.began))
            say(f"{passed}  {done} of {self.total} {self.unit}  {what}")
