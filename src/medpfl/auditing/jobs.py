"""An audit's jobs: which victims are attacked together, by which attack, under which defense."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from medpfl.auditing.aggregation import Group, Groups, masks
from medpfl.auditing.defense_parts import at_client, discloses, untold
from medpfl.auditing.records.recorded import behind
from medpfl.auditing.scenario import Scenario
from medpfl.core.roles import NO_DEFENSE, Attack, Defense
from medpfl.core.threat import ThreatModel
from medpfl.core.verdicts import MASKED, RANDOM_UPDATE
from medpfl.runs.jobs import JobKey

__all__ = ["Job", "jobs_of", "knowledge_of"]

_RANDOM_UPDATES = 8
"""Largest number of victims in a control, for each attack."""


@dataclass(frozen=True, eq=False)
class Job:
    """One attack on a stack of victims under one defense: the unit to redo after a kill.

    Attributes:
        attack, defense: the attack, and the defense behind the updates.
        groups: the victims; each is the group of clients whose updates reach the server as one.
        rows: number of rows.
        draw: number of the draw of untrained weights.
        stack: number of the stack.
        knows: True if the attack knows the defense's disclosure.
        control: name of the control, which replaces the sent update; ``""`` if the job is no control.
        first: number of its first victim in the stack, above 0 in a part of a stack that did not fit into memory.
    """

    attack: Attack
    defense: Defense
    groups: Sequence[Group] = ()
    rows: int = 0
    draw: int = 0
    stack: int = 0
    knows: bool = False
    control: str = ""
    first: int = 0

    @cached_property
    def key(self) -> JobKey:
        """The job's name in rows and files."""
        return JobKey(self.control, self.draw, repr(self.defense), repr(self.attack), self.stack, self.knows)

    def parts(self, most: int) -> list[Job]:
        """Return the job in parts with at most `most` victims."""
        each = self.rows // max(1, len(self.groups))
        cut = [(i, self.groups[i : i + most]) for i in range(0, len(self.groups), most)]
        return [replace(self, groups=groups, rows=each * len(groups), first=i) for i, groups in cut]


def jobs_of(scenario: Scenario) -> list[Job]:
    """Return an audit's jobs in their order, the controls first."""
    return [*_controls(scenario), *_attacks(scenario)]


def knowledge_of(defense: Defense, threat: ThreatModel) -> tuple[bool, ...]:
    """Return whether to run attacks without knowledge of the defense, with it, or both.

    ``(False,)`` if the defense discloses nothing; otherwise ``threat.knowledge``.
    """
    if at_client(behind(defense)) == NO_DEFENSE or untold(defense):
        return (False,)
    return threat.knowledge if discloses(defense) else (False,)


def _controls(scenario: Scenario) -> Iterator[Job]:
    """Yield the attacks on random updates, and on single masked messages under secure aggregation."""
    kinds = [(RANDOM_UPDATE, NO_DEFENSE), *((MASKED, defense) for defense in filter(masks, scenario.defenses))]
    for control, defense in kinds:
        groups = _stacks(scenario, defense)[0][:_RANDOM_UPDATES]
        rows = len(groups) * scenario.plan.images
        for attack in scenario.attacks:
            yield Job(attack, defense, groups, rows, control=control)


def _attacks(scenario: Scenario) -> Iterator[Job]:
    for draw, defense in product(range(scenario.selection.draws), scenario.defenses):
        images, stacks = scenario.plan.images * scenario.in_sum(defense), _stacks(scenario, defense)
        for attack, knows in product(scenario.attacks, knowledge_of(defense, scenario.threat)):
            for number, groups in enumerate(stacks):
                yield Job(attack, defense, groups, len(groups) * images, draw, number, knows)


def _stacks(scenario: Scenario, defense: Defense) -> list[Groups]:
    groups = Groups(scenario.victims, range(len(scenario.victims)), scenario.together(defense))
    most = scenario.stack(defense)
    return [groups[i : i + most] for i in range(0, len(groups), most)]
