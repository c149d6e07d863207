"""Progress of an audit's jobs and a training's rounds, and notes on the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import monotonic

from medpfl.core import progress
from medpfl.core.errors import listed, private
from medpfl.core.messages import say
from medpfl.runs.estimate import Estimate
from medpfl.runs.jobs import JobKey
from medpfl.runs.pulse import pulsing

__all__ = ["files", "name_skipped", "rounds_of", "watching"]

_NAMED = 10
"""Largest number of skipped files that are named."""
_APART = 0.2
"""Minimum seconds between two descriptions of a step, which may wait for an accelerator."""
_LONGEST = 100
"""Largest number of characters that an attack may say of its progress."""

During = Callable[[JobKey, int], AbstractContextManager[None]]


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
def watching(total: int, done: int, visible: bool, estimate: Estimate | None = None) -> Iterator[During]:
    """Show the number of finished images if `visible`; yield a context manager for each job.

    Args:
        total, done: number of images, in all jobs and in finished ones.
        visible: False shows nothing.
        estimate: estimate for the unfinished jobs, by key; without one, the mean speed counts.
    """
    if not visible:
        yield lambda job, images: nullcontext()
        return
    finished = done
    with pulsing(True) as pulse, pulse.counting(total, done, "images", estimate and estimate.left) as show:

        @contextmanager
        def during(job: JobKey, images: int) -> Iterator[None]:
            nonlocal finished
            before, what, latest = finished, f"{job.attack} x {job.control or job.defense}", -_APART

            def listen(share: float, said: Callable[[], str]) -> None:
                nonlocal latest
                if estimate:
                    estimate.report(share)
                if (now := monotonic()) - latest >= _APART:
                    latest = now
                    show(what, before + share * images, _printable(said()))

            show(what, before)
            if estimate:
                estimate.begin(job)
            with progress.listening(listen):
                yield
            if estimate:
                estimate.end()
            finished += images
            show(what, finished)

        yield during


def _printable(said: str) -> str:
    return said[:_LONGEST] if said.isprintable() else ""


def rounds_of(first: int, last: int, visible: bool) -> Iterator[int]:
    """Yield the rounds from `first` to `last`, and show the latest if `visible`."""
    if not visible:
        yield from range(first, last + 1)
        return
    with pulsing(True) as pulse, pulse.counting(last, max(first - 1, 0), "rounds") as show:
        for number in range(first, last + 1):
            show(f"round {number}", max(number - 1, 0))
            with progress.listening(
                lambda share, said, number=number: show(
                    f"round {number}", max(number - 1 + share, 0), _printable(said())
                )
            ):
                yield number
            show(f"round {number}", number)
