"""Execution of one job, from the private batch to its rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import combinations
from math import sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from medpfl.auditing.aggregation import aggregates, one_masked, summed
from medpfl.auditing.defense_parts import at_client
from medpfl.auditing.jobs import Job
from medpfl.auditing.probe.disclosure import Disclosure, probe
from medpfl.auditing.reconstructed import check_reconstruction
from medpfl.auditing.records.recorded import Recorded, behind
from medpfl.auditing.scenario import Scenario
from medpfl.auditing.scoring import Scorer
from medpfl.core.roles import NO_DEFENSE, Attack, Defense, State
from medpfl.core.threat import ThreatModel
from medpfl.core.trace import tracing
from medpfl.core.types import Batch, Finding, Reconstruction, Tensors, Update, Weights
from medpfl.core.user_code.global_draws import seeded
from medpfl.core.verdicts import MASKED, RANDOM_UPDATE
from medpfl.federated.client import ClientRound, client_round
from medpfl.federated.ready import prepare
from medpfl.federated.server import Received, observation, receive, receive_sums
from medpfl.isolation.parent import Isolated
from medpfl.runs.environment import checked_module, explained, generator_of, naming, versions
from medpfl.runs.jobs import JobKey

__all__ = ["Player"]

_DRAWS = 8
"""Times that a record's round is repeated, to see how much depends on the client's own random draws."""


_PUBLIC = 0
"""Seed for everything random that an attack gets; never the run's own seed."""

_ITERATES = 30
"""Iterates to keep for each restart, if requested: as many as the notebooks keep from 300 steps."""


class Sent(NamedTuple):
    """The server's global model in a draw, ready for use, as separate networks for client and server."""

    client: nn.Module
    server: nn.Module
    weights: Weights
    state: State


class Player:
    """An executor for an audit's jobs.

    Args:
        scenario: the audit's scenario.
        scorer: scorer to compare guesses with target images; ``None`` if jobs are only timed.
        doubted: True if one of the model's layers has a wrong second derivative.
    """

    def __init__(self, scenario: Scenario, scorer: Scorer | None = None, doubted: bool = False) -> None:
        self.scenario, self.scorer, self.doubted = scenario, scorer, doubted
        self.versions = versions()
        self._held: tuple[JobKey | None, Sent | None] = (None, None)

    def __call__(self, job: Job) -> tuple[list[Finding], Tensor, Tensor]:
        """Run a job, and return its rows, target images and guesses."""
        assert self.scorer is not None, "this player only times jobs"
        attack, seen, victims, doubts = self._prepared(job)
        started = time.perf_counter()
        guess = self._attack(attack, seen, job)
        seconds = time.perf_counter() - started
        return self.scorer.rows(guess, victims, doubts, seconds, self._common(job, guess))

    def timed(self, job: Job, attack: Attack) -> float:
        """Return the seconds that an attack takes on a job's victims; its guesses are dropped."""
        _, seen, _, _ = self._prepared(job)
        started = time.perf_counter()
        attack(seen, generator_of(_PUBLIC, "timing"))
        return time.perf_counter() - started

    def check(self, job: Job) -> None:
        """Compute the first update that a job attacks, and what the attack would see; no attack runs.

        Raises:
            InputError: the job would be refused.
        """
        self._prepared(replace(job, groups=job.groups[:1]))

    def _prepared(self, job: Job) -> tuple[Attack, Any, list[Tensor], list[tuple[str, ...]]]:
        """Return a job's attack, ready to run, its input, and each victim's images and flags."""
        rounds = [[self._round(job, number, own) for number, own in group] for group in job.groups]
        received, told, victims, doubts = self._receive(job, rounds)
        return *self._placed(received, told, job), victims, doubts

    def disclosures(self) -> dict[Defense, Disclosure]:
        """Probe every defense that acts at a client: compare what it does with what it discloses."""
        scenario, found = self.scenario, {}
        for defense in scenario.defenses:
            if at_client(behind(defense)) == NO_DEFENSE:
                continue
            batches = [self._batch(own) for own in scenario.victims[:2]]
            with naming(defense), explained("its disclosure cannot be probed"):
                generator = generator_of(scenario.run.seed, "disclosure", repr(defense))
                found[defense] = probe(defense, scenario.network(0), scenario.plan, batches, generator)
        return found

    def _batch(self, own: Tensor) -> Batch:
        data, device = self.scenario.data, self.scenario.device
        return Batch(data.images[own].to(device), self.scenario.truths[own].to(device))

    def difference(self, recorded: Recorded) -> dict[str, float]:
        """Return how far a recorded update is from the target images' own, relative to the latter.

        The record's batch order, dropout masks and noise are unknown, so the round is repeated with several draws of
        them. ``difference`` is the smallest distance to the record. ``spread`` is the largest distance between two
        draws. If draws differ by disclosed noise alone, the record should be as far from a draw as draws are from each
        other; ``noise`` is then the smallest distance between two draws, and 0 otherwise. ``common`` is the size of
        the part that two draws share, again relative to the images' own update.
        """
        claimed = repr(recorded.claimed)
        job = Job(self.scenario.attacks[0], recorded.claimed)
        rounds = [self._round(job, 0, self.scenario.victims[0])]
        if recorded.claimed != NO_DEFENSE or rounds[0].draws.order is not None or rounds[0].draws.masks:
            rounds += [self._round(job, 0, self.scenario.victims[0], again) for again in range(1, _DRAWS)]
        pairs = list(combinations(rounds, 2))
        apart = [_distance(a.sent, b.sent) for a, b in pairs]
        with explained(f"the disclosure of {claimed} failed"):
            told = recorded.claimed.disclose(recorded.sent, self.scenario.plan).precision
        noise_alone = told is not None and rounds[0].draws.order is None and not rounds[0].draws.masks
        return {
            "difference": min(_distance(played.sent, recorded.sent) for played in rounds),
            "spread": max(apart, default=0.0),
            "noise": min(apart, default=0.0) if noise_alone else 0.0,
            "common": _common([(a.sent, b.sent) for a, b in pairs]),
        }

    def _model(self, job: Job) -> Sent:
        """Return a job's global model; consecutive jobs with the same model reuse it."""
        key = job.key._replace(control="", stack=0, knows=False)
        if self._held[0] != key:
            self._held = (key, self._make_model(job))
        assert self._held[1] is not None
        return self._held[1]

    def _make_model(self, job: Job) -> Sent:
        """Build the global model as the server sends it, changed by the client's defense."""
        network = self.scenario.network(job.draw)
        if "active" in self.scenario.threat:
            with naming(job.attack), explained("it cannot prepare the model that the server sends"):
                network = checked_module(self.scenario.placed(job.attack).prepare(network))
        chosen = at_client(job.defense)
        generator = generator_of(self.scenario.run.seed, "model", job.draw, job.key.defense)
        with naming(job.defense), explained("it cannot change this model"):
            network, state = chosen.model(network, chosen.init(), generator)
            network = checked_module(network)
        # The server's copy never sees a private image, since a network may keep traces of its inputs.
        client, server = (prepare(network, self.scenario.plan) for _ in range(2))
        return Sent(client, server, Weights.of(network), state)

    def _doubts(self, rounds: list[ClientRound], sent: Update) -> tuple[str, ...]:
        """Return the flags for these clients' update or sum."""
        raised = {
            "zero-gradient": bool(all(played.raw.norm() == 0 for played in rounds) or sent.norm() == 0),
            "nonfinite": not all(bool(t.isfinite().all()) for t in sent.tensors.values()),
            "wrong-derivative": self.doubted,
        }
        return tuple(flag for flag, up in raised.items() if up)

    def _round(self, job: Job, number: int, own: Tensor, again: int = 0) -> ClientRound:
        """Run a client's round; another value of `again` draws its order, masks and noise again."""
        sent, batch = self._model(job), self._batch(own)
        generator = generator_of(self.scenario.run.seed, "client", job.draw, number, *([again] if again else []))
        defense = at_client(job.defense)
        with explained(f"the update of this model cannot be computed under {job.key.defense}"):
            played = client_round(sent.client, sent.weights, batch, self.scenario.plan, defense, sent.state, generator)
        return _randomized(played, generator) if job.control == RANDOM_UPDATE else played

    def _receive(
        self, job: Job, rounds: list[list[ClientRound]]
    ) -> tuple[Received, Defense, list[Tensor], list[tuple[str, ...]]]:
        """Return what the server receives, the defense that discloses it, and each victim's images and flags."""
        defense = at_client(job.defense)
        if not aggregates(defense):
            alone = [played for (played,) in rounds]
            doubts = [self._doubts([played], played.sent) for played in alone]
            return self._received(job, receive, alone), defense, [own for ((_, own),) in job.groups], doubts
        with explained(f"{job.key.defense} cannot sum the updates"):
            made = [
                summed(defense, group, played, generator_of(self.scenario.run.seed, "sum", job.draw, group[0][0]))
                for group, played in zip(job.groups, rounds, strict=True)
            ]
        if job.control == MASKED:
            alone = [one_masked(defense, one) for one in made]
            images = [one.images[: self.scenario.plan.images] for one in made]
            doubts = [self._doubts([played], played.sent) for played in alone]
            return self._received(job, receive, alone), NO_DEFENSE, images, doubts
        sums = [(one.exchange.mean, one.rounds) for one in made]
        doubts = [self._doubts(played, mean) for mean, played in sums]
        return self._received(job, receive_sums, sums), defense, [one.images for one in made], doubts

    def _received(self, job: Job, how: Callable[..., Received], what: list[Any]) -> Received:
        with explained("the server cannot receive the updates"):
            return how(
                self._model(job).weights,
                self.scenario.plan,
                what,
                self._threat(job),
                image_shape=self.scenario.data.shape,
                num_classes=self.scenario.outputs,
                label_shape=self.scenario.label_shape,
                auxiliary=self._others() if "auxiliary" in self.scenario.threat else None,
            )

    def _placed(self, received: Received, told: Defense, job: Job) -> tuple[Attack, Any]:
        """Return the attack, ready to run, and its input: the observation, or what another process builds it from."""
        if isinstance(job.attack, Isolated):
            return self.scenario.placed(job.attack, at_client(job.defense), told), received
        with explained(f"the disclosure of {job.key.defense} failed"):
            return job.attack, observation(self._model(job).server, received, told)

    def _threat(self, job: Job) -> ThreatModel:
        """Return the job's threat model, with the grant ``defense`` if the job's attack knows the defense."""
        return self.scenario.threat.granting("defense") if job.knows else self.scenario.threat.withholding("defense")

    def _others(self) -> Tensor:
        """Return the images for the grant ``auxiliary``: no target image, no copy of one, and no victim's patient."""
        return self.scenario.data.images[self._free].to(self.scenario.device)

    @cached_property
    def _free(self) -> list[int]:
        data, private = self.scenario.data, self.scenario.victims.flatten().tolist()
        patients, copies = {data.patients[i] for i in private} - {None}, data.copies.tolist()
        pictures = {copies[i] for i in private}
        return [i for i in range(len(data)) if copies[i] not in pictures and data.patients[i] not in patients]

    def _attack(self, attack: Attack, seen: Any, job: Job) -> Reconstruction:
        # The same under every run seed. If it followed from that seed, an attack could try small seeds until one gave
        # this generator, and then repeat a client's draws of noise, order and masks.
        place = [job.stack, *([job.first] if job.first else [])]
        generator = generator_of(_PUBLIC, "attack", job.key.attack, job.draw, *place)
        most = _ITERATES if self.scenario.criteria.iterates else 0
        with explained(f"{job.key.attack} cannot attack this model"), tracing(most), seeded(generator):
            guess = attack(seen, generator)
        check_reconstruction(guess, seen, job.key.attack)
        return guess

    def _common(self, job: Job, guess: Reconstruction) -> dict[str, Any]:
        scenario = self.scenario
        return {
            "attack": job.key.attack,
            "defense": job.key.defense,
            "model": repr(scenario.model),
            "data": scenario.source,
            "plan": repr(scenario.plan),
            "grants": self._threat(job).grants,
            "control": job.control,
            "draw": job.draw,
            "stack": job.stack,
            "seed": scenario.run.seed,
            "engine": f"{guess.engine} of {len(guess.guesses)}",
            "device": str(scenario.device),
            "versions": self.versions,
        }


def _randomized(played: ClientRound, generator: torch.Generator) -> ClientRound:
    """Return the round with a normally distributed random update, with the same norm in every tensor."""

    def random(tensors: Tensors) -> Tensors:
        drawn = {name: torch.randn(t.shape, generator=generator).to(t) for name, t in tensors.items()}
        return {name: d * (tensors[name].norm() / d.norm().clamp(min=1e-30)) for name, d in drawn.items()}

    sent = played.sent.replace(random(played.sent.tensors))
    return ClientRound(played.batch, played.draws, played.raw, sent, played.state)


def _distance(own: Update, other: Update) -> float:
    gap = {name: t - other.tensors[name] for name, t in own.tensors.items()}
    return float(own.replace(gap).norm() / own.norm().clamp(min=1e-30))


def _common(pairs: Sequence[tuple[Update, Update]]) -> float:
    """Return the size of the part that two draws of an update share, relative to a draw; 1 without pairs.

    Independent noise has a mean inner product of 0, so that of two draws is the square of the shared part's size.
    """
    shared = [
        sum(float((t.double() * other.tensors[name].double()).sum()) for name, t in own.tensors.items())
        / max(float(own.norm()) * float(other.norm()), 1e-60)
        for own, other in pairs
    ]
    return sqrt(max(sum(shared) / len(shared), 0.0)) if shared else 1.0
