"""One job, from the private batch to its rows: the line of the design, read from left to right."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from medpfl.auditing.aggregation import Group, aggregates, one_masked, summed
from medpfl.auditing.defense_parts import at_client
from medpfl.auditing.probe.disclosure import Disclosure, probe
from medpfl.auditing.reconstructed import check_reconstruction
from medpfl.auditing.recorded import Recorded, behind
from medpfl.auditing.scoring import Scorer
from medpfl.auditing.setup import Setup
from medpfl.core.roles import NO_DEFENSE, Attack, Defense, State
from medpfl.core.threat import ThreatModel
from medpfl.core.trace import tracing
from medpfl.core.types import Batch, Finding, Reconstruction, Tensors, Update, Weights
from medpfl.core.verdicts import MASKED, RANDOM_UPDATE
from medpfl.federated.client import ClientRound, client_round
from medpfl.federated.ready import prepare
from medpfl.federated.server import Received, observation, receive, receive_sums
from medpfl.isolation.parent import Isolated
from medpfl.runs.environment import checked_module, explained, generator_of, naming, versions
from medpfl.runs.jobs import JobKey

__all__ = ["Player"]

_DRAWS = 8
"""Times that a record's round is played, to see how much depends on the client's own draws."""


_PUBLIC = 0
"""In place of the run's seed, where an attack gets what is drawn from it."""

_ITERATES = 30
"""Kept of each start, where they are asked for: as many as the notebooks keep of 300 steps."""


class Sent(NamedTuple):
    """What the server sent to the clients of a draw, ready for use: one network each for client and server."""

    client: nn.Module
    server: nn.Module
    weights: Weights
    state: State


class Player:
    """Plays the jobs of an audit.

    Args:
        setup: the audit.
        scorer: compares with the truth.
    """

    def __init__(self, setup: Setup, scorer: Scorer) -> None:
        self.setup, self.scorer = setup, scorer
        self.attacks = {repr(a): a for a in setup.attacks}
        self.defenses = {repr(d): at_client(d) for d in setup.defenses}
        self.versions = versions()
        self._model = lru_cache(maxsize=1)(self._make_model)

    def __call__(self, job: JobKey) -> tuple[list[Finding], Tensor, Tensor]:
        """A job's rows, truths and guesses."""
        attack = self.attacks[job.attack]
        groups = self.setup.of_job(job)
        rounds = [[self._round(job, number, own) for number, own in group] for group in groups]
        received, told, victims, doubts = self._receive(job, groups, rounds)
        attack, seen = self._placed(attack, received, told, job)
        started = time.perf_counter()
        guess = self._attack(attack, seen, job)
        seconds = time.perf_counter() - started
        return self.scorer.rows(guess, victims, doubts, seconds, self._common(job, guess))

    def disclosures(self) -> dict[Defense, Disclosure]:
        """Play every defense that acts at a client, and compare what it does with what it discloses."""
        setup, found = self.setup, {}
        for defense in setup.defenses:
            if at_client(behind(defense)) == NO_DEFENSE:
                continue
            batches = [self._batch(own) for own in setup.victims[:2]]
            with naming(defense), explained("it cannot say what it discloses"):
                generator = generator_of(setup.seed, "disclosure", repr(defense))
                found[defense] = probe(defense, setup.network(0), setup.plan, batches, generator)
        return found

    def _batch(self, own: Tensor) -> Batch:
        data, device = self.setup.data, self.setup.device
        return Batch(data.images[own].to(device), self.setup.truths[own].to(device))

    def difference(self, recorded: Recorded) -> dict[str, float]:
        """How far a recorded update is from what the truth gives under plan and defense, relative to the latter.

        Batch order, dropout masks and noise of the record are not known: of a few draws of them, ``difference``
        is the least, and ``spread`` how far apart they are among themselves. Of independent noise alone, a record is
        as far from a draw as draws are from each other: ``noise`` is how near two of these come, else 0.
        """
        claimed = repr(recorded.claimed)
        self.defenses.setdefault(claimed, recorded.claimed)
        job = JobKey("", 0, claimed, repr(self.setup.attacks[0]), 0)
        rounds = [self._round(job, 0, self.setup.victims[0])]
        if recorded.claimed != NO_DEFENSE or rounds[0].draws.order is not None or rounds[0].draws.masks:
            rounds += [self._round(job, 0, self.setup.victims[0], again) for again in range(1, _DRAWS)]
        apart = [_distance(a.sent, b.sent) for a, b in combinations(rounds, 2)]
        with explained(f"{claimed} cannot say what it discloses"):
            told = recorded.claimed.disclose(recorded.sent, self.setup.plan).precision
        noise_alone = told is not None and rounds[0].draws.order is None and not rounds[0].draws.masks
        return {
            "difference": min(_distance(played.sent, recorded.sent) for played in rounds),
            "spread": max(apart, default=0.0),
            "noise": min(apart, default=0.0) if noise_alone else 0.0,
        }

    def _make_model(self, draw: int, defense: str, attack: str) -> Sent:
        """The global model as the server sent it and the client's defense changed it."""
        network = self.setup.network(draw)
        if "active" in self.setup.threat:
            with naming(attack), explained("it cannot prepare the model that the server sends"):
                network = checked_module(self.setup.placed(self.attacks[attack]).prepare(network))
        chosen = self.defenses[defense]
        generator = generator_of(self.setup.seed, "model", draw, defense)
        with naming(defense), explained("it cannot change this model"):
            network, state = chosen.model(network, chosen.init(), generator)
            network = checked_module(network)
        # The server gets a copy that no private image has ever passed: a network may keep what passes it.
        client, server = (prepare(network, self.setup.plan) for _ in range(2))
        return Sent(client, server, Weights.of(network), state)

    def _doubts(self, rounds: list[ClientRound], sent: Update) -> tuple[str, ...]:
        """The flags of what the server gets of these clients."""
        raised = {
            "zero-gradient": bool(all(played.raw.norm() == 0 for played in rounds) or sent.norm() == 0),
            "nonfinite": not all(bool(t.isfinite().all()) for t in sent.tensors.values()),
            "wrong-derivative": self.setup.wrong_layer is not None,
        }
        return tuple(flag for flag, up in raised.items() if up)

    def _round(self, job: JobKey, number: int, own: Tensor, again: int = 0) -> ClientRound:
        """A client's round; `again` names another draw of its order, masks and noise."""
        sent, batch = self._model(job.draw, job.defense, job.attack), self._batch(own)
        generator = generator_of(self.setup.seed, "client", job.draw, number, *([again] if again else []))
        defense = self.defenses[job.defense]
        with explained(f"the update of this model cannot be computed under {job.defense}"):
            played = client_round(sent.client, sent.weights, batch, self.setup.plan, defense, sent.state, generator)
        return _randomized(played, generator) if job.control == RANDOM_UPDATE else played

    def _receive(
        self, job: JobKey, groups: list[Group], rounds: list[list[ClientRound]]
    ) -> tuple[Received, Defense, list[Tensor], list[tuple[str, ...]]]:
        """What the server has, the defense that says how to read it, the images behind each victim, and its flags."""
        defense = self.defenses[job.defense]
        if not aggregates(defense):
            alone = [played for (played,) in rounds]
            doubts = [self._doubts([played], played.sent) for played in alone]
            return self._received(job, receive, alone), defense, [own for ((_, own),) in groups], doubts
        with explained(f"{job.defense} cannot sum the updates"):
            made = [
                summed(defense, group, played, generator_of(self.setup.seed, "sum", job.draw, group[0][0]))
                for group, played in zip(groups, rounds, strict=True)
            ]
        if job.control == MASKED:
            alone = [one_masked(defense, one) for one in made]
            images = [one.images[: self.setup.plan.images] for one in made]
            doubts = [self._doubts([played], played.sent) for played in alone]
            return self._received(job, receive, alone), NO_DEFENSE, images, doubts
        sums = [(one.exchange.mean, one.rounds) for one in made]
        doubts = [self._doubts(played, mean) for mean, played in sums]
        return self._received(job, receive_sums, sums), defense, [one.images for one in made], doubts

    def _received(self, job: JobKey, how: Callable[..., Received], what: list[Any]) -> Received:
        return how(
            self._model(job.draw, job.defense, job.attack).weights,
            self.setup.plan,
            what,
            self._threat(job),
            image_shape=self.setup.data.shape,
            num_classes=self.setup.outputs,
            label_shape=self.setup.label_shape,
            auxiliary=self._others() if "auxiliary" in self.setup.threat else None,
        )

    def _placed(self, attack: Attack, received: Received, told: Defense, job: JobKey) -> tuple[Attack, Any]:
        """The attack where it runs, and what it is called with: another process makes the observation itself."""
        if isinstance(attack, Isolated):
            return self.setup.placed(attack, self.defenses[job.defense], told), received
        with explained(f"{job.defense} cannot say what it discloses"):
            return attack, observation(self._model(job.draw, job.defense, job.attack).server, received, told)

    def _threat(self, job: JobKey) -> ThreatModel:
        """The grants of a job: what the defense discloses of itself where it says so, and all others."""
        return self.setup.threat.granting("defense") if job.knows else self.setup.threat.withholding("defense")

    def _others(self) -> Tensor:
        """Images that no victim holds, not even as a copy, of no victim's patient."""
        data, private = self.setup.data, set(torch.cat(self.setup.victims).tolist())
        patients = {data.patients[i] for i in private} - {None}
        pictures = {int(data.copies[i]) for i in private}
        free = [i for i in range(len(data)) if int(data.copies[i]) not in pictures and data.patients[i] not in patients]
        return data.images[free].to(self.setup.device)

    def _attack(self, attack: Attack, seen: Any, job: JobKey) -> Reconstruction:
        # The same under every seed of a run. Were it drawn from that seed, an attack could try small seeds until one of
        # them gave this generator, and then draw a client's noise, order and masks again.
        generator = generator_of(_PUBLIC, "attack", job.attack, job.draw, job.stack)
        most = _ITERATES if self.setup.iterates else 0
        with explained(f"{job.attack} cannot attack this model"), tracing(most):
            guess = attack(seen, generator)
        check_reconstruction(guess, seen, job.attack)
        return guess

    def _common(self, job: JobKey, guess: Reconstruction) -> dict[str, Any]:
        setup = self.setup
        return {
            "attack": job.attack,
            "defense": job.defense,
            "model": repr(setup.model),
            "data": setup.source,
            "plan": repr(setup.plan),
            "grants": self._threat(job).grants,
            "control": job.control,
            "draw": job.draw,
            "stack": job.stack,
            "seed": setup.seed,
            "engine": f"{guess.engine} of {len(guess.guesses)}",
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


def _distance(own: Update, other: Update) -> float:
    gap = {name: t - other.tensors[name] for name, t in own.tensors.items()}
    return float(own.replace(gap).norm() / own.norm().clamp(min=1e-30))
