"""Checks for everything that cannot work in an audit, before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from math import ceil

import torch
from torch import nn

from medpfl import attacks as attack_package
from medpfl.auditing.aggregation import aggregates, check_sum
from medpfl.auditing.defense_parts import at_client
from medpfl.auditing.jobs import knowledge_of
from medpfl.auditing.scenario import Scenario
from medpfl.core.errors import InputError
from medpfl.core.messages import say
from medpfl.core.plan import Plan
from medpfl.core.roles import Attack, Defense
from medpfl.core.spec import registry
from medpfl.federated.ready import check_separable, prepare
from medpfl.inputs.parts import GivenModel
from medpfl.inspection.derivatives import check_derivatives
from medpfl.inspection.stability import growth_of_changes
from medpfl.metrics.pixel import ssim
from medpfl.runs.environment import explained, free_memory, generator_of, naming

__all__ = ["Feasibility"]


class Feasibility:
    """A scenario's checks, each of which runs once.

    Args:
        scenario: the audit's scenario.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario

    def check(self) -> None:
        """Raise `InputError` if anything in the scenario cannot work."""
        scenario = self.scenario
        several = scenario.selection.draws > 1
        if several and (scenario.weights is not None or isinstance(scenario.model, GivenModel)):
            raise InputError("--draws > 1 re-initializes weights, but this model comes with weights: use --draws 1")
        _ = scenario.code  # before any of it runs
        if several:
            self._check_draws_differ()
        for defense in scenario.defenses:
            with explained(f"{defense!r} could not be checked"):
                self._check_defense(defense)
        ssim(scenario.probe, scenario.probe)  # refuses images that are too small for it
        _ = scenario.outputs, self.wrong_layer, *map(scenario.stack, scenario.defenses)  # all run the network
        self._check_memory()
        if scenario.plan.loss == "dice" and not scenario.label_shape:
            raise InputError("loss dice needs masks, but this model predicts one class per image: use cross_entropy")
        self._check_attacks(scenario.attacks)

    def _check_draws_differ(self) -> None:
        scenario, draws = self.scenario, self.scenario.selection.draws
        if _equal(scenario.network(0), scenario.network(1)):
            raise InputError(
                f"--draws {draws} needs new weights in each draw, but this model has the same in two draws (it loads "
                "or sets its own): use --draws 1"
            )

    def _check_defense(self, defense: Defense) -> None:
        if at_client(defense).acts("gradient"):
            with naming(defense):
                check_separable(prepare(self.scenario.network(0), self.scenario.plan))
        if aggregates(defense):
            check_sum(defense, self.scenario.clients, self.scenario.plan)
        knowledge_of(defense, self.scenario.threat)

    def _check_memory(self) -> None:
        """Raise `InputError` if an attack on a single update needs more memory than stated and than there is free."""
        scenario = self.scenario
        stated, needed = scenario.run.memory, max(map(scenario.victim_gib, scenario.defenses))
        if needed <= stated:
            return
        free, steps = free_memory(scenario.device), scenario.plan.steps
        size = f"an attack on one update takes about {needed:,.1f} GiB, more than --memory ({stated:g})"
        if free is None or needed <= free:
            say(f"note: {size}: updates are attacked one by one")
            return
        remedy = "smaller batches or images help"
        if steps > 1:
            remedy = f"it keeps all {steps} local steps, so fewer epochs or local images help"
        raise InputError(
            f"{size} and than the {free:,.1f} GiB that are free: {remedy}; to run it all the same, state --memory "
            f"{ceil(needed)}"
        )

    def refusal(self, attack: Attack) -> str:
        """Return why an attack does not take the model, as each defense changes it, or the plan; ``""`` if it does."""
        try:
            self._check_attacks([attack])
        except InputError as error:
            return f"{error}"  # with the marks of what a file must not hold
        return ""

    def _check_attacks(self, attacks: Sequence[Attack]) -> None:
        """Check attacks on the model as each defense changes it."""
        for defense, (ready, plans) in zip(self.scenario.defenses, self.scenario.scenes(), strict=True):
            for attack in attacks:
                with naming(attack), explained("it cannot check this model"):
                    self.scenario.placed(attack, defense).check(ready, plans, self.scenario.data.shape)

    @cached_property
    def untried(self) -> list[Attack]:
        """Attacks that suit this model but are not run.

        They are specialized attacks that accept this model under all of the audit's defenses, and attacks of the audit
        with other settings made for it.
        """
        network = self.scenario.network(0)
        suited: list[Attack] = []
        for attack in self.scenario.attacks:
            with explained(f"{type(attack).__name__} cannot say which settings suit this model"):
                suited += [
                    found
                    for found in self.scenario.placed(attack).suited(network)
                    if found not in self.scenario.attacks
                ]
        return [kind() for kind in self._accepted if kind.specialized] + suited

    @cached_property
    def _accepted(self) -> list[type[Attack]]:
        """Those of `_left` that accept the model, as each defense changes it, and the plan."""
        accepted, seen = self._left, set()
        for defense, (ready, plans) in zip(self.scenario.defenses, self.scenario.scenes(), strict=True):
            scene = repr(defense) if defense.acts("model") else "", len(plans)
            if scene not in seen:  # most defenses leave the model as it is, and a check may trace it
                accepted = [kind for kind in accepted if self._takes(kind(), ready, plans)]
            seen.add(scene)
        return accepted

    @property
    def _left(self) -> list[type[Attack]]:
        """MedPFL's attacks that are neither named nor run by a named one."""
        named = [type(attack) for attack in self.scenario.attacks]
        run = {_home(kind) for one in named for kind in (one, *getattr(one, "members", ()))}
        return [kind for kind in registry(attack_package).values() if _home(kind) not in run]

    def _takes(self, attack: Attack, ready: nn.Module, plans: tuple[Plan, ...]) -> bool:
        with suppress(InputError), explained("it cannot be run as the check runs it"):
            return attack.accepts(ready, plans, self.scenario.data.shape)
        return False

    @property
    def not_run(self) -> dict[str, list[str]]:
        """MedPFL's attacks that are not run: those that suit this model, others that accept it, and the rest.

        The keys are ``suited``, ``others`` and ``unfit``.
        """
        suited = {_home(type(attack)) for attack in self.untried}
        return {
            "suited": [repr(attack) for attack in self.untried],
            "others": [repr(kind()) for kind in self._accepted if _home(kind) not in suited],
            "unfit": [repr(kind()) for kind in self._left if kind not in self._accepted],
        }

    @cached_property
    def wrong_layer(self) -> str | None:
        """The layer whose second derivative does not match what it computes, in words; ``None`` if there is none.

        Raises:
            InputError: the update cannot be differentiated.
        """
        network, few = self.scenario.network(0), min(2, self.scenario.plan.batch_size)
        images = torch.rand(few, *self.scenario.data.shape, generator=generator_of(0, "probe")).to(self.scenario.device)
        return check_derivatives(network, images, self.scenario.outputs, self.scenario.plan)

    @cached_property
    def growth(self) -> float | None:
        """Growth of a small change of the weights over the local steps; ``None`` where it is not known."""
        scenario = self.scenario
        if scenario.label_shape:
            return None
        return growth_of_changes(scenario.network(0), scenario.data.shape, scenario.outputs, scenario.plan)


def _home(kind: type) -> tuple[str, str]:
    """Return a class's module and name, which an isolated attack's class shares although it is another object."""
    return kind.__module__, kind.__qualname__


def _equal(one: nn.Module, other: nn.Module) -> bool:
    """Return True if two networks have the same trainable weights."""
    pairs = zip(one.parameters(), other.parameters(), strict=False)
    return all(torch.equal(a, b) for a, b in pairs if a.requires_grad)
