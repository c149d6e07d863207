"""The work of an audit for an engine: jobs by number, and what they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from medpfl.auditing.jobs import Job, jobs_of
from medpfl.auditing.player import Player
from medpfl.auditing.scenario import Scenario
from medpfl.auditing.scoring import Scorer
from medpfl.auditing.store import to_bytes
from medpfl.core.types import Finding

__all__ = ["Played", "Work"]


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
    """Plays an audit's jobs, by their number in the audit's order.

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

    def __call__(self, number: int) -> Played:
        """Play a job."""
        rows, *pictures = self.player(self.jobs[number])
        if self.scenario.run.numbers_only:
            return Played(rows, ())
        return Played(rows, tuple(to_bytes(images).numpy() for images in pictures))

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs: no path of this run, no reader of images, nothing that was derived."""
        scenario = self.scenario
        sent = replace(scenario, reader=None, run=replace(scenario.run, out=None, progress=False))
        return {"scenario": sent, "scorer": replace(self.scorer, data=sent.data), "doubted": self.doubted}
