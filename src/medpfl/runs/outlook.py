"""The plan that ``--dry-run`` prints: work, time, memory, and what is done already. Does not import torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from medpfl.runs.pulse import clock

__all__ = ["Outlook", "Step"]

_RUN = 1.0
"""Seconds that a run inside another takes besides its work: its checks, its files and its pages."""


@dataclass(frozen=True)
class Step:
    """A part of the work.

    Attributes:
        what: its name.
        count, unit: its size, such as 32 images.
        jobs, done: number of jobs in it, and of those that are done already.
        seconds: estimated time of the others; ``None`` if unknown.
    """

    what: str
    count: int
    unit: str
    jobs: int = 1
    done: int = 0
    seconds: float | None = None


@dataclass(frozen=True)
class Outlook:
    """A command's plan.

    Attributes:
        steps: the work, in its order.
        memory: estimated peak memory in GiB; ``None`` if unknown.
        notes: remarks, such as why a run directory would be refused.
        workers: number of jobs that run at the same time.
        setup: estimated seconds besides the steps, such as for loading, checks and pages.
    """

    steps: tuple[Step, ...]
    memory: float | None = None
    notes: tuple[str, ...] = ()
    workers: int = 1
    setup: float = 0.0

    @property
    def seconds(self) -> float | None:
        """The estimated time in all; ``None`` if a step's is unknown, and 0 if all steps are done."""
        known = [step.seconds for step in self.steps if step.done < step.jobs]
        return None if None in known else (self.setup + sum(filter(None, known)) / self.workers if known else 0.0)

    @classmethod
    def of(cls, parts: Iterable[tuple[str, Outlook]]) -> Outlook:
        """Join several plans; the name of each is put before its steps."""
        parts = list(parts)
        steps = [replace(step, what=f"{name}: {step.what}") for name, own in parts for step in own.steps]
        notes = dict.fromkeys(note for _, own in parts for note in own.notes)
        memory = max((own.memory or 0.0 for _, own in parts), default=0.0) or None
        todo = [own for _, own in parts if any(step.done < step.jobs for step in own.steps)]
        setup = sum(own.setup + _RUN for own in todo)
        return cls(tuple(steps), memory, tuple(notes), max((own.workers for _, own in parts), default=1), setup)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON data, with the estimated minutes."""
        seconds = self.seconds
        return {
            "kind": "plan",
            "steps": [asdict(step) for step in self.steps],
            "minutes": None if seconds is None else round(seconds / 60, 2),
            "memory_gib": self.memory,
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """Return the plan as lines of text.

        >>> steps = (Step("iDLG()", 8, "images", 2, 1, 30.0), Step("DLG()", 8, "images", 1, 1))
        >>> print("\\n".join(Outlook(steps, 0.5).lines()))
        iDLG()  8 images  2 jobs, 1 done  30 s
        DLG()   8 images  1 job, done     skipped
        in all: 3 jobs, 2 done; about 30 s, 0.5 GiB of memory; nothing was run or written
        """
        cells = [[step.what, f"{step.count} {step.unit}", _jobs(step), _time(step)] for step in self.steps]
        wide = [max(map(len, column)) for column in zip(*cells, strict=True)]
        rows = ["  ".join(c.ljust(w) for c, w in zip(row, wide, strict=True)).rstrip() for row in cells]
        return [*rows, *self.notes, self._sum()]

    def _sum(self) -> str:
        jobs, done = sum(step.jobs for step in self.steps), sum(step.done for step in self.steps)
        time = "unknown time" if self.seconds is None else f"about {clock(self.seconds)}"
        memory = "" if self.memory is None else f", {self.memory:.1f} GiB of memory"
        counted = f"{jobs} job{'s' * (jobs != 1)}{f', {done} done' if done else ''}"
        at_once = f" with {self.workers} workers" if self.workers > 1 else ""
        return f"in all: {counted}; {time}{at_once}{memory}; nothing was run or written"


def _jobs(step: Step) -> str:
    counted = f"{step.jobs} job{'s' * (step.jobs != 1)}"
    if not step.done:
        return counted
    return f"{counted}, {'done' if step.done == step.jobs else f'{step.done} done'}"


def _time(step: Step) -> str:
    if step.done == step.jobs:
        return "skipped"
    return "unknown" if step.seconds is None else clock(step.seconds)
