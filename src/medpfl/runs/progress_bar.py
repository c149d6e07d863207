"""Progress of an audit's jobs and a training's rounds, and notes on the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic

from medpfl.core import progress
from medpfl.core.errors import listed, private
from medpfl.core.messages import counted, say
from medpfl.runs.estimate import Estimate
from medpfl.runs.jobs import JobKey
from medpfl.runs.pulse import pulsing

__all__ = ["Jobs", "name_skipped", "rounds_of", "watching"]

_NAMED = 10
"""Largest number of skipped files that are named."""
_APART = 0.2
"""Minimum seconds between two descriptions of a step, which may wait for an accelerator."""
_LONGEST = 100
"""Largest number of characters that an attack may say of its progress."""


def name_skipped(skipped: Sequence[str], notes: Sequence[str] = ()) -> None:
    """Print notes on the data and the names of skipped files, or only their number if names may not be shown."""
    for note in notes:
        say(f"note: {note}")
    if skipped:
        names = private(f":{listed(skipped, _NAMED)}", " (--show-paths names them)")
        say(f"skipped {counted(len(skipped), 'file')} that could not be read{names}")


class Jobs:
    """The jobs that run now, for the line that shows how much is done; this one shows nothing."""

    def begin(self, job: JobKey, images: int) -> None:
        """Note that a job with some images has begun."""

    def report(self, job: JobKey, share: float, said: Callable[[], str] = str) -> None:
        """Note that a share (0 to 1) of a job is done; `said` describes it, and is called only if shown."""

    def end(self, job: JobKey) -> None:
        """Note that a job is done."""


class _Shown(Jobs):
    def __init__(self, show: Callable[..., None], done: int, estimate: Estimate | None) -> None:
        self.show, self.finished, self.estimate = show, done, estimate
        self.running: dict[JobKey, tuple[int, float]] = {}
        self._latest = -_APART

    def begin(self, job: JobKey, images: int) -> None:
        self.running[job] = (images, 0.0)
        if self.estimate:
            self.estimate.begin(job)
        self._latest = -_APART
        self._tell(job)

    def report(self, job: JobKey, share: float, said: Callable[[], str] = str) -> None:
        self.running[job] = (self.running[job][0], share)
        if self.estimate:
            self.estimate.report(job, share)
        if (now := monotonic()) - self._latest >= _APART:
            self._latest = now
            self._tell(job, _printable(said()))

    def end(self, job: JobKey) -> None:
        images, _ = self.running.pop(job)
        if self.estimate:
            self.estimate.end(job)
        self.finished += images
        self._tell(job)

    def _tell(self, job: JobKey, said: str = "") -> None:
        several = len(self.running) > 1
        what = f"{len(self.running)} jobs at once" if several else job.named
        done = self.finished + sum(images * share for images, share in self.running.values())
        self.show(what, done, "" if several else said)


@contextmanager
def watching(total: int, done: int, visible: bool, estimate: Estimate | None = None) -> Iterator[Jobs]:
    """Show the number of finished images if `visible`; yield the jobs, which the work keeps up to date.

    Args:
        total, done: number of images, in all jobs and in finished ones.
        visible: False shows nothing.
        estimate: estimate for the unfinished jobs, by key; without one, the mean speed counts.
    """
    if not visible:
        yield Jobs()
        return
    with pulsing(True) as pulse, pulse.counting(total, done, "images", estimate and estimate.left) as show:
        yield _Shown(show, done, estimate)


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
