"""One job, from the private batch to its rows: the line of the design, read from left to right."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from medpfl.attacks.matching import stacks
from medpfl.auditing.engine import generator_of, versions
from medpfl.auditing.scoring import Scorer
from medpfl.auditing.setup import Setup
from medpfl.auditing.store import JobKey
from medpfl.core.errors import InputError
from medpfl.core.roles import Attack, Defense, State
from medpfl.core.types import Batch, Finding, Observation, Reconstruction, Tensors, Weights
from medpfl.core.verdicts import RANDOM_UPDATE
from medpfl.federated.client import ClientRound, client_round
from medpfl.federated.ready import prepare
from medpfl.federated.server import observe

__all__ = ["Player"]


class Player:
    """Plays the jobs of an audit.

    Args:
        setup: the audit.
        scorer: compares with the truth.
    """

    def __init__(self, setup: Setup, scorer: Scorer) -> None:
        self.setup, self.scorer = setup, scorer
        self.attacks = {repr(a): a for a in setup.attacks}
        self.defenses = {repr(d): d for d in setup.defenses}
        self.versions = versions()
        self._model = lru_cache(maxsize=1)(self._make_model)

    def __call__(self, job: JobKey) -> tuple[list[Finding], Tensor, Tensor]:
        """A job's rows, truths and guesses."""
        attack = self.attacks[job.attack]
        first, victims = self.setup.of_job(job)
        rounds, zero = self._send(job, first, victims)
        seen = self._see(job, rounds)
        started = time.perf_counter()
        guess = self._attack(attack, seen, job)
        seconds = time.perf_counter() - started
        return self.scorer.rows(guess, victims, zero, seconds, self._common(job, seen))

    def difference(self, defense: Defense) -> float:
        """How far a recorded update is from what the truth gives under the plan, relative to the latter."""
        model, weights, state = self._model(0, repr(defense), repr(self.setup.attacks[0]))
        own = self.setup.victims[0]
        batch = Batch(self.setup.data.images[own], self.setup.data.labels[own])
        generator = generator_of(self.setup.seed, "client", 0, 0)
        played = client_round(model, weights, batch, self.setup.plan, defense, state, generator)
        gap = {name: t - played.sent.tensors[name] for name, t in played.raw.tensors.items()}
        return float(played.raw.replace(gap).norm() / played.raw.norm().clamp(min=1e-30))

    def _make_model(self, draw: int, defense: str, attack: str) -> tuple[nn.Module, Weights, State]:
        """The global model as the server sent it and the client's defense changed it."""
        network = self.setup.network(draw)
        if "active" in self.setup.threat:
            network = self.attacks[attack].prepare(network)
        chosen = self.defenses[defense]
        generator = generator_of(self.setup.seed, "model", draw, defense)
        network, state = chosen.model(network, chosen.init(), generator)
        return prepare(network, self.setup.plan), Weights.of(network), state

    def _send(self, job: JobKey, first: int, victims: list[Tensor]) -> tuple[list[ClientRound], list[bool]]:
        """The clients' rounds, and whose raw update is exactly zero."""
        model, weights, state = self._model(job.draw, job.defense, job.attack)
        defense, data, rounds = self.defenses[job.defense], self.setup.data, []
        for number, own in enumerate(victims, first):
            batch = Batch(data.images[own].to(self.setup.device), data.labels[own].to(self.setup.device))
            generator = generator_of(self.setup.seed, "client", job.draw, number)
            played = client_round(model, weights, batch, self.setup.plan, defense, state, generator)
            rounds.append(_randomized(played, generator) if job.control == RANDOM_UPDATE else played)
        return rounds, [bool(played.raw.norm() == 0) for played in rounds]

    def _see(self, job: JobKey, rounds: list[ClientRound]) -> Observation:
        model, weights, _ = self._model(job.draw, job.defense, job.attack)
        return observe(
            model,
            weights,
            self.setup.plan,
            rounds,
            self.setup.threat,
            defense=self.defenses[job.defense],
            image_shape=self.setup.data.shape,
            num_classes=self.setup.outputs,
            auxiliary=self._others(),
        )

    def _others(self) -> Tensor:
        """Images that no victim holds, of no victim's patient."""
        data, private = self.setup.data, torch.cat(self.setup.victims).tolist()
        patients = {data.patients[i] for i in private} - {None}
        free = [i for i in range(len(data)) if i not in set(private) and data.patients[i] not in patients]
        return data.images[free].to(self.setup.device)

    def _attack(self, attack: Attack, seen: Observation, job: JobKey) -> Reconstruction:
        generator = generator_of(self.setup.seed, "attack", job.attack, job.draw, job.stack)
        try:
            return attack(seen, generator)
        except (RuntimeError, NotImplementedError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise InputError("out of memory: lower --memory, --batch-size or --size") from error
            reason = str(error).partition("\n")[0]
            raise InputError(f"{job.attack} cannot attack this model: {reason}") from error

    def _common(self, job: JobKey, seen: Observation) -> dict[str, Any]:
        setup = self.setup
        return {
            "attack": job.attack,
            "defense": job.defense,
            "model": repr(setup.model),
            "data": setup.source,
            "plan": repr(setup.plan),
            "grants": setup.threat.grants,
            "control": job.control,
            "draw": job.draw,
            "stack": job.stack,
            "seed": setup.seed,
            "engine": f"{'vmap' if stacks(seen) else 'loop'} of {len(seen)}",
            "device": str(setup.device),
            "versions": self.versions,
        }


def _randomized(played: ClientRound, generator: torch.Generator) -> ClientRound:
    """The round with normal numbers in place of its update, of the same norm in every tensor."""

    def random(tensors: Tensors) -> Tensors:
        drawn = {name: torch.randn(t.shape, generator=generator).to(t) for name, t in tensors.items()}
        return {name: d * (tensors[name].norm() / d.norm().clamp(min=1e-30)) for name, d in drawn.items()}

    sent = played.sent.replace(random(played.sent.tensors))
    return ClientRound(played.batch, played.draws, played.raw, sent, played.state)


def server_side(defenses: list[Defense]) -> list[str]:
    """Specs of the defenses that do not act at the client."""
    return [repr(d) for d in defenses if d.where == "server"]
