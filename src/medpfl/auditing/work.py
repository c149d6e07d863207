"""The work of an audit for an engine: jobs by number, and what they give.

A stack that runs out of memory is attacked in halves, unless stacks must stay whole (`Scenario.whole`). Searches draw
the random numbers of a whole stack at once, so the rows depend on how a stack was split: the engine's caller keeps that
before the halves are attacked (`Again`).
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from medpfl.auditing.jobs import Job, jobs_of
from medpfl.auditing.player import Player
from medpfl.auditing.scenario import Scenario
from medpfl.auditing.scoring import Scorer
from medpfl.auditing.store import to_bytes
from medpfl.core import progress
from medpfl.core.errors import OutOfMemoryError
from medpfl.core.types import Finding
from medpfl.engines.engine import Again

__all__ = ["Played", "Task", "Work"]


class Task(NamedTuple):
    """A job to play.

    Attributes:
        number: the job's number in the audit's order.
        most: most victims to attack together; a larger stack is split.
    """

    number: int
    most: int


@dataclass(frozen=True)
class Played:
    """A job's rows and images.

    Attributes:
        rows: its rows.
        pictures: target images and guesses, both uint8 (rows, C, H, W); empty if only numbers are kept.
    """

    rows: list[Finding]
    pictures: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class Work:
    """Plays an audit's jobs.

    Attributes:
        scenario: the audit's scenario.
        scorer: scorer for its guesses.
        doubted: as in `Player`.
    """

    scenario: Scenario
    scorer: Scorer
    doubted: bool

    @cached_property
    def jobs(self) -> Sequence[Job]:
        """The audit's jobs, which every process derives from the scenario."""
        return jobs_of(self.scenario)

    @cached_property
    def player(self) -> Player:
        """The player of these jobs."""
        return Player(self.scenario, self.scorer, self.doubted)

    def __call__(self, task: Task) -> Played | Again:
        """Play a job; if it runs out of memory, return the same with at most half as many victims together.

        Raises:
            InputError: as for `Player`; an `OutOfMemoryError` if one victim is too much, or stacks must stay whole.
        """
        job = self.jobs[task.number]
        parts = job.parts(task.most)
        try:
            played = []
            for i, part in enumerate(parts):
                with progress.part(i / len(parts), (i + 1) / len(parts)):
                    played.append(self._played(part))
        except OutOfMemoryError as error:
            largest = len(parts[0].groups)
            if largest == 1:
                raise OutOfMemoryError(
                    f"{job.key.named}: out of memory, with the update of one victim alone: lower --batch-size or "
                    "--size, use fewer --workers, or another --device"
                ) from error
            if self.scenario.whole:
                gib = largest * self.scenario.victim_gib(job.defense)
                raise OutOfMemoryError(
                    f"{job.key.named}: out of memory with {largest} victims together, which take about {gib:.2g} GiB "
                    "beside model and images. Fewer together would have other random starting points, so no number is "
                    "stated: free memory, use fewer --workers or another --device, or run medpfl audit, which splits "
                    "them and says so"
                ) from error
            again = Again(task._replace(most=-(-largest // 2)))
        else:
            rows = [row for one in played for row in one.rows]
            return Played(rows, tuple(map(np.concatenate, zip(*(one.pictures for one in played), strict=True))))
        gc.collect()  # the error's frames refer to each other, and hold the memory
        return again

    def _played(self, part: Job) -> Played:
        rows, *pictures = self.player(part)
        rows = [replace(row, victim=part.first + row.victim) for row in rows] if part.first else rows
        if self.scenario.run.numbers_only:
            return Played(rows, ())
        return Played(rows, tuple(to_bytes(images).numpy() for images in pictures))

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs: no path of this run, no reader of images, nothing that was derived."""
        scenario = self.scenario
        sent = replace(scenario, reader=None, run=replace(scenario.run, out=None, progress=False))
        return {"scenario": sent, "scorer": replace(self.scorer, data=sent.data), "doubted": self.doubted}
