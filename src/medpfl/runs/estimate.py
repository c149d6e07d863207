"""The time that jobs take: guessed before they run, and corrected by those that have run. Does not import torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import NamedTuple

from medpfl.core.messages import say
from medpfl.core.progress import later, phase

__all__ = ["Estimate", "Pace", "Piece"]

_PATIENT = 0.8
"""Share of a job's expected time after which its own pace counts."""
_SURE = 0.02
"""Share of a job that must be done before its own pace counts."""


class Piece(NamedTuple):
    """A job to estimate.

    Attributes:
        kinds: its kinds, from the special to the general: jobs of one kind take similarly long. The last is shared by
            all jobs.
        seconds: a first guess of its time; only ratios matter once a job has run.
        alone: True if neither the guess nor other jobs tell its time, only those that share a kind before the last.
    """

    kinds: tuple[str, ...]
    seconds: float
    alone: bool = False


class _Started(NamedTuple):
    """A job that runs: since when, and the share of it that is done, at most (it may end early)."""

    piece: Piece
    began: float
    share: float = 0.0

    @property
    def whole(self) -> float | None:
        """Its seconds by its own pace; ``None`` if too little of it is done."""
        return (monotonic() - self.began) / self.share if self.share > _SURE else None


class Estimate:
    """An estimate of the time that is left for a list of jobs.

    Args:
        pieces: the jobs to run, by any key.
        trusted: True if the guesses are in seconds; else nothing is known until a job has run.
        workers: number of jobs that run at the same time.
    """

    def __init__(self, pieces: Mapping[object, Piece], trusted: bool = True, workers: int = 1) -> None:
        self.todo = dict(pieces)
        self.trusted, self.workers = trusted, workers
        self._known: dict[str, tuple[float, float]] = {}
        self._now: dict[object, _Started] = {}

    def begin(self, key: object) -> None:
        """Start a job's clock, again if the job begins again."""
        piece = self._now[key].piece if key in self._now else self.todo.pop(key)
        self._now = {**self._now, key: _Started(piece, monotonic())}  # another thread reads them

    def report(self, key: object, share: float) -> None:
        """Note the share of a job that is done, at most (it may end early)."""
        if key in self._now:
            self._now = {**self._now, key: self._now[key]._replace(share=share)}

    def end(self, key: object) -> None:
        """Stop a job's clock, and learn from it."""
        piece, began, _ = self._now[key]
        self._now = {other: job for other, job in self._now.items() if other != key}
        for kind in piece.kinds:
            guessed, taken = self._known.get(kind, (0.0, 0.0))
            self._known[kind] = (guessed + piece.seconds, taken + monotonic() - began)

    def expected(self, piece: Piece) -> float | None:
        """Return a job's expected seconds, by what the most specific of its kinds took; ``None`` if nothing is known.

        If no job like it has ended, but one runs, that one's own pace tells.
        """
        kinds = piece.kinds[:-1] if piece.alone else piece.kinds
        for kind in kinds:
            if kind in self._known:
                guessed, taken = self._known[kind]
                return piece.seconds * taken / max(guessed, 1e-9)
        if not piece.alone:
            return piece.seconds if self.trusted else None
        for job in self._now.values():
            if job.whole is not None and set(kinds) & set(job.piece.kinds[:-1]):
                return piece.seconds * job.whole / max(job.piece.seconds, 1e-9)
        return None

    def left(self) -> float | None:
        """Return the seconds that are probably left, or ``None`` if nothing is known yet."""
        todo, now = list(self.todo.values()), list(self._now.values())  # another thread asks, while the work goes on
        ahead, rests = [self.expected(piece) for piece in todo], [self._rest(job) for job in now]
        if None in ahead or None in rests:
            return None
        longest = max((rest for rest in rests if rest is not None), default=0.0)
        return max(longest, (sum(filter(None, ahead)) + sum(filter(None, rests))) / self.workers)

    def _rest(self, job: _Started) -> float | None:
        """Return a running job's seconds to come: by its kind, and once these are nearly over by its own pace."""
        passed, expected, whole = monotonic() - job.began, self.expected(job.piece), job.whole
        if expected is None:
            return None if whole is None else whole - passed
        if passed < _PATIENT * expected:
            return expected - passed if whole is None else min(expected, whole) - passed
        return max(expected - passed, (whole - passed) / 2 if whole else expected / 4)


class Pace:
    """The time that is left for runs inside a run, each of which estimates its own: by the mean of those that ended.

    Args:
        todo: number of runs by kind, such as ``{"training": 6, "audit": 1}``.
        visible: True prints the name of each run when it begins.
    """

    def __init__(self, todo: Mapping[str, int], visible: bool) -> None:
        self.todo, self.visible = dict(todo), visible
        self._taken: dict[str, list[float]] = {kind: [] for kind in todo}
        self._began, self._at_once = monotonic(), 0

    @contextmanager
    def one(self, kind: str, what: str) -> Iterator[None]:
        """Name a run while it lasts, state what the others will take after it, and learn from it."""
        self.todo[kind] -= 1
        if self.visible:
            say(what)
        began = monotonic()
        with phase(what), later(self.left):
            yield
        self._taken[kind].append(monotonic() - began)

    @contextmanager
    def several(self, kind: str, count: int) -> Iterator[None]:
        """Name runs that go on at the same time while they last; `ended` learns from each of them."""
        self._began, self._at_once = monotonic(), 0
        what = f"{count} {kind}s at the same time" if count > 1 else f"{count} {kind}"
        if self.visible:
            say(what)
        with phase(what), later(self.left):
            yield

    def ended(self, kind: str) -> None:
        """Note that one of `several` runs ended; their mean time is that of all of them together."""
        self.todo[kind] -= 1
        self._at_once += 1
        self._taken[kind] = [(monotonic() - self._began) / self._at_once]

    def left(self) -> float | None:
        """Return the seconds of the runs that have not begun; ``None`` if none of a kind has ended."""
        seconds = 0.0
        for kind, count in self.todo.items():
            if count > 0:
                taken = self._taken[kind]
                if not taken:
                    return None
                seconds += count * sum(taken) / len(taken)
        return seconds
