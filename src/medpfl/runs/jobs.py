"""Jobs: the units of work that a kill can cost."""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

from medpfl.core.types import Finding

__all__ = ["JobKey", "job_of"]


class JobKey(NamedTuple):
    """One stack of victims under one attack and one defense: the unit that is redone after a kill.

    `knows` says whether the attack is told what the defense discloses of itself.
    """

    control: str
    draw: int
    defense: str
    attack: str
    stack: int
    knows: bool = False

    def file_name(self) -> str:
        """Of its pictures."""
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()[:16] + ".safetensors"


def job_of(row: Finding) -> JobKey:
    """The job that a row belongs to."""
    return JobKey(row.control, row.draw, row.defense, row.attack, row.stack, row.knows_defense)
