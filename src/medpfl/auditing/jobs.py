"""The jobs of an audit: which stacks of victims meet which attack under which defense."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from medpfl.auditing.aggregation import Group, masks
from medpfl.auditing.defense_parts import at_client, discloses, untold
from medpfl.auditing.recorded import behind
from medpfl.auditing.scenario import Scenario
from medpfl.core.roles import NO_DEFENSE, Attack, Defense
from medpfl.core.threat import ThreatModel
from medpfl.core.verdicts import MASKED, RANDOM_UPDATE
from medpfl.runs.jobs import JobKey

__all__ = ["Job", "jobs_of", "knowledge_of"]

_RANDOM_UPDATES = 8
"""Victims of the random-update control, for each attack."""


@dataclass(frozen=True, eq=False)
class Job:
    """One stack of victims under one attack and one defense: the unit that is redone after a kill.

    Attributes:
        attack, defense: who attacks, and what the updates passed.
        groups: the victims, each the clients whose updates reach the server together.
        rows: how many the job gives.
        draw: of the untrained weights.
        stack: its number.
        knows: whether the attack is told what the defense discloses of itself.
        control: ``""``, or what the attack gets in place of the sent update.
    """

    attack: Attack
    defense: Defense
    groups: tuple[Group, ...] = ()
    rows: int = 0
    draw: int = 0
    stack: int = 0
    knows: bool = False
    control: str = ""

    @cached_property
    def key(self) -> JobKey:
        """The job as rows and files name it."""
        return JobKey(self.control, self.draw, repr(self.defense), repr(self.attack), self.stack, self.knows)


def jobs_of(scenario: Scenario) -> list[Job]:
    """Return all jobs of an audit in their order: the controls first."""
    return [*_controls(scenario), *_attacks(scenario)]


def knowledge_of(defense: Defense, threat: ThreatModel) -> tuple[bool, ...]:
    """Return one run where there is nothing to know, or nothing of it is told; else both ways, or as granted."""
    if at_client(behind(defense)) == NO_DEFENSE or untold(defense):
        return (False,)
    return threat.knowledge if discloses(defense) else (False,)


def _controls(scenario: Scenario) -> Iterator[Job]:
    """Yield the attacks on random updates, and on single messages of secure aggregation."""
    kinds = [(RANDOM_UPDATE, NO_DEFENSE), *((MASKED, defense) for defense in filter(masks, scenario.defenses))]
    for control, defense in kinds:
        groups = tuple(_stacks(scenario, defense)[0][:_RANDOM_UPDATES])
        rows = len(groups) * scenario.plan.images
        for attack in scenario.attacks:
            yield Job(attack, defense, groups, rows, control=control)


def _attacks(scenario: Scenario) -> Iterator[Job]:
    for draw, defense in product(range(scenario.selection.draws), scenario.defenses):
        images, stacks = scenario.plan.images * scenario.in_sum(defense), _stacks(scenario, defense)
        for attack, knows in product(scenario.attacks, knowledge_of(defense, scenario.threat)):
            for number, groups in enumerate(stacks):
                yield Job(attack, defense, tuple(groups), len(groups) * images, draw, number, knows)


def _stacks(scenario: Scenario, defense: Defense) -> list[list[Group]]:
    together, most = scenario.together(defense), scenario.stack(defense)
    numbered = list(enumerate(scenario.victims))
    groups = [tuple(numbered[i : i + together]) for i in range(0, len(numbered), together)]
    return [groups[i : i + most] for i in range(0, len(groups), most)]
