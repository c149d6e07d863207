"""One training round, from the clients' images to the round's row and checkpoint."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from torch import nn

from medpfl.auditing.privacy.epsilon import uncovered_statistics
from medpfl.core import progress
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.roles import Unit
from medpfl.core.rounds import Epsilons, Round, Scores
from medpfl.core.types import Update, Weights
from medpfl.data.images import LabelledImages
from medpfl.engines.engine import Crew, Lost, Watch
from medpfl.federated.training import Done, Played, Standing, close_round, logits_of
from medpfl.federated.wire import wire_bytes
from medpfl.inputs.checkpoint import STATE, WEIGHTS, AboutCheckpoint, keep, put_weights, round_folder
from medpfl.metrics.utility import utility
from medpfl.runs.environment import explained, generator_of, versions
from medpfl.training.setup import TrainingSetup
from medpfl.training.state_files import packed, unpacked
from medpfl.training.store import TrainingStore
from medpfl.training.work import ClientTask

__all__ = ["Trainer"]


class Trainer:
    """Runs a training's rounds, starting where its store ends.

    Args:
        setup: the training.
        store: store for its rows and checkpoints.
        crew: the workers that play the clients' rounds, with a `medpfl.training.work.ClientWork`.
    """

    def __init__(self, setup: TrainingSetup, store: TrainingStore, crew: Crew) -> None:
        self.setup, self.store, self.crew, self.versions = setup, store, crew, versions()
        self.network, self.standing = setup.begin()
        if store.out is not None and store.rows:
            self.standing = self._read(store.rows[-1].round)
        self.spent = Spent(setup, self.network)

    @property
    def weights(self) -> Weights:
        """The global model's weights."""
        return self.standing.weights

    def play(self, number: int) -> None:
        """Run a round and store it; round 0 is the model before training."""
        began, before, done = time.perf_counter(), self.standing, list[Done]()
        if number:
            done = self._clients(number)
            with explained("a round cannot be run"):
                self.standing, _ = self._closed(number, done)
        row = self._row(number, done, before.weights)
        if self.store.out is not None:
            self._keep(number)
        self.store.add(replace(row, seconds=time.perf_counter() - began))

    def _clients(self, number: int) -> list[Done]:
        """Play the round of each client that takes part.

        Raises:
            InputError: as for `ClientWork`, or a client's worker ended each time.
        """
        clients, before = self.setup.participants(number), self.standing
        tasks = [ClientTask(number, client, before.weights, before.clients[client]) for client in clients]
        found = dict(self.crew.results(tasks, _Told(len(tasks))))
        for place, done in found.items():
            if isinstance(done, Lost):
                raise InputError(
                    f"round {number} could not be finished, because client {clients[place]} was not trained: "
                    f"{done.why}; repeat the command to try it again"
                )
        return [found[place] for place in range(len(tasks))]

    def _closed(self, number: int, done: Sequence[Done]) -> Played:
        setup, generator = self.setup, generator_of(self.setup.seed, "server", number)
        return close_round(self.standing, done, setup.defense, setup.server(number), generator)

    def _row(self, number: int, done: Sequence[Done], before: Weights) -> Round:
        setup, sent = self.setup, [one.sent for one in done]
        step = {name: t - before.parameters[name] for name, t in self.weights.parameters.items()}
        masked = setup.defense.acts("aggregate")
        return Round(
            round=number,
            clients=tuple(one.client for one in done),
            images=sum(one.images for one in done),
            scores={name: self._scores(images) for name, images in setup.splits.judged.items()},
            update_norm=float(Update(step).norm()),
            sent_norm=sum(float(u.norm()) for u in sent) / max(len(sent), 1),
            bytes_sent=sum(wire_bytes(u, masked) for u in sent),
            epsilon=self.spent(self.standing.taken),
            delta=setup.schedule.delta,
            seed=setup.seed,
            device=str(setup.device),
            versions=self.versions,
            seconds=0.0,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _scores(self, images: LabelledImages) -> Scores:
        with explained("the model cannot be run on the validation or test images"):
            logits = logits_of(self.network, self.weights, images.images)
        patients = [i if p is None else p for i, p in enumerate(images.patients)]
        return utility(logits, images.labels, patients)

    def _keep(self, number: int) -> None:
        setup, out = self.setup, self.store.out
        assert out is not None
        specs = self.store.cloak((repr(setup.model), repr(setup.defense)))
        about = AboutCheckpoint(number, *specs, setup.data.shape, len(setup.data.classes), setup.seed)
        keep(out, about, self.network, self.weights, packed(self.standing))

    def _read(self, number: int) -> Standing:
        assert self.store.out is not None
        folder = round_folder(self.store.out, number)
        try:
            put_weights(self.network, folder / WEIGHTS)
            state = unpacked(folder / STATE)
        except InputError as error:
            raise InputError(
                f"the training cannot continue: {error}; delete '{folder}' and repeat the command to redo that round"
            ) from None
        state["velocity"] = {name: t.to(self.setup.device) for name, t in state["velocity"].items()}
        weights = Weights.of(self.network)
        own = [{k: t.clone() for k, t in group.items()} for group in (weights.parameters, weights.buffers)]
        return Standing(Weights(*own), **state)


class _Told(Watch):
    """Reports the share of a round's clients that are done."""

    def __init__(self, clients: int) -> None:
        self.clients, self.done = clients, 0

    def end(self, place: int) -> None:
        self.done += 1
        progress.report(self.done / self.clients, lambda: f"{self.done} of {self.clients} clients")


class Spent:
    """The epsilon spent so far by the client that spent most, by privacy unit; ``None`` without a guarantee.

    Attributes:
        why: why a guarantee exists but no epsilon is stated; empty otherwise.
    """

    def __init__(self, setup: TrainingSetup, network: nn.Module) -> None:
        self.setup, self.why = setup, ""
        self._known: dict[tuple[Plan, int], dict[Unit, float]] = {}
        self.units: tuple[Unit, ...] = ()
        try:
            promised = self._of(0, 1)
        except InputError as error:
            self.why = f"epsilon is unknown: {error}"
        else:
            self.why = self._uncovered(network) if promised else ""
            self.units = () if self.why else tuple(promised)

    def __call__(self, taken: Sequence[int]) -> Epsilons | None:
        found = [self._of(client, n) for client, n in enumerate(taken) if n] if self.units else []
        return tuple((unit, max((one[unit] for one in found), default=0.0)) for unit in self.units) or None

    def _of(self, client: int, rounds: int) -> dict[Unit, float]:
        key = (self.setup.plan_of(client), rounds)
        if key not in self._known:
            with explained("the defense cannot state its epsilon"):
                self._known[key] = dict(self.setup.defense.promises(*key, self.setup.schedule.delta) or {})
        return self._known[key]

    def _uncovered(self, network: nn.Module) -> str:
        """Return why no epsilon may be stated, or an empty string: the guarantee must cover everything that is sent."""
        if self.setup.schedule.balance:
            return "epsilon is not stated: with --balance, an image may appear in several batches per epoch"
        if uncovered_statistics(self.setup.defense, network, self.setup.plan):
            return "epsilon is not stated: it would not cover the batch-norm statistics that clients send"
        return ""
