"""Jobs, the units of work to redo after a kill."""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

from medpfl.core.types import Finding

__all__ = ["JobKey", "job_of"]


class JobKey(NamedTuple):
    """One stack of victims under one attack and one defense, the unit of work to redo after a kill.

    `knows` is true if the attack knows the defense's disclosure.
    """

    control: str
    draw: int
    defense: str
    attack: str
    stack: int
    knows: bool = False

    @property
    def named(self) -> str:
        """The job in words: its attack, and its control or defense."""
        return f"{self.attack} x {self.control or self.defense}"

    def file_name(self) -> str:
        """Return the name of the file with the job's pictures."""
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()[:16] + ".safetensors"


def job_of(row: Finding) -> JobKey:
    """Return a row's job."""
    return JobKey(row.control, row.draw, row.defense, row.attack, row.stack, row.knows_defense)
