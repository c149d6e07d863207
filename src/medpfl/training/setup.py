"""A federated training, built and checked before any work begins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from medpfl.core.errors import InputError
from medpfl.core.experiments.schedule import Schedule
from medpfl.core.plan import Plan
from medpfl.core.roles import Defense, Model
from medpfl.core.types import Batch
from medpfl.data.augment import augmented
from medpfl.data.images import LabelledImages
from medpfl.data.partition import Partition
from medpfl.federated.training import Server, Standing, Work, start
from medpfl.inputs.network import check_network, network_of
from medpfl.inspection.derivatives import check_update
from medpfl.runs.environment import explained, generator_of, seed_of
from medpfl.runs.identity import Code, Identity, fingerprint, layers_of
from medpfl.runs.study_key import StudyIndex
from medpfl.training.splits import Splits, part_of

__all__ = ["TrainingSetup"]


@dataclass(frozen=True, eq=False)
class TrainingSetup:
    """All inputs of a training; together they determine its rows.

    Attributes:
        model, weights: the model's recipe, and a file with initial weights.
        splits: the images.
        defense, plan, partition, schedule: the scenario; ``plan.local_images = None`` means all of a client's images.
        seed, device, threads: the run's seed, device and number of torch threads.
    """

    model: Model
    weights: Path | None
    splits: Splits
    defense: Defense
    plan: Plan
    partition: Partition
    schedule: Schedule
    seed: int
    device: torch.device
    threads: int = 1

    @property
    def data(self) -> LabelledImages:
        """All images read for training, including held-out ones."""
        return self.splits.found.images

    @cached_property
    def clients(self) -> tuple[Tensor, ...]:
        """Each client's images, as indices into `data`."""
        train = self.splits.train
        with explained("the images cannot be distributed among clients"):
            dealt = self.partition.deal(part_of(self.data, train), generator_of(self.seed, "clients"))
        for number, own in enumerate(dealt):
            if not len(own):
                raise InputError(f"client {number} has no image: use fewer clients or another partition")
        return tuple(train[own] for own in dealt)

    def check(self) -> None:
        """Raise `InputError` if the training cannot work."""
        _ = self.code  # before any of it runs
        if self.schedule.balance and self.plan.sampling == "poisson":
            raise InputError(
                "balance and Poisson sampling exclude each other: balance repeats images of rare classes, Poisson "
                "sampling draws all at one rate"
            )
        smallest = min(range(len(self.clients)), key=lambda c: len(self.clients[c]))
        plan = self.plan_of(smallest)
        probe = self.data.images[self.clients[smallest][: plan.batch_size]].to(self.device)
        outputs = check_network(self.base(), probe, len(self.data.classes), plan)
        check_update(self.base(), probe, outputs, plan)
        self.begin()

    def base(self) -> nn.Module:
        """Build the global model as it is before training and before the defense changes it."""
        seed = seed_of(self.seed, "weights", 0)
        return network_of(self.model, self.data.shape, len(self.data.classes), seed, self.weights).to(self.device)

    def begin(self) -> tuple[nn.Module, Standing]:
        """Return the network to train and the initial state."""
        network = self.base()
        with explained("the defense cannot change this model"):
            return start(network, self.defense, len(self.clients), generator_of(self.seed, "model"))

    def plan_of(self, client: int, number: int = 1) -> Plan:
        """Return a client's plan for a round: as many images as asked for, or else whole batches from the client's."""
        held, plan = len(self.clients[client]), self.plan
        size, images = min(plan.batch_size, held), min(plan.local_images or held, held)
        one = plan.algorithm == "FedSGD" and plan.sampling == "shuffle"
        whole = images if plan.local_images == images else images // size * size
        return replace(
            plan,
            batch_size=size,
            local_images=None if one else whole,
            learning_rate=plan.learning_rate * self.schedule.decay ** (number - 1),
        )

    def participants(self, number: int) -> list[int]:
        """Return the clients that take part in a round."""
        count = max(1, round(self.schedule.fraction * len(self.clients)))
        order = torch.randperm(len(self.clients), generator=generator_of(self.seed, "participants", number))
        return sorted(order[:count].tolist())

    def work(self, client: int, number: int) -> Work:
        """Return a client's work in a round."""
        plan, generator = self.plan_of(client, number), generator_of(self.seed, "client", number, client)
        chosen = self._chosen(client, plan, generator)
        images = self.data.images[chosen]
        if self.schedule.augment:
            images = augmented(images, generator_of(self.seed, "augment", number, client))
        batch = Batch(images.to(self.device), self.data.labels[chosen].to(self.device))
        return Work(client, batch, plan, generator)

    def _chosen(self, client: int, plan: Plan, generator: torch.Generator) -> Tensor:
        own = self.clients[client]
        if plan.sampling == "poisson":  # the same images in every round, because epsilon assumes this sampling rate
            generator = generator_of(self.seed, "poisson", client)
        if self.schedule.balance:
            return own[_evenly(self.data.labels[own], plan.images, generator)]
        return own[torch.randperm(len(own), generator=generator)[: plan.images]]

    def server(self, number: int) -> Server:
        """Return the server's step for a round."""
        rate = self.plan.learning_rate * self.schedule.decay ** (number - 1)
        return Server(rate, self.schedule.server_momentum)

    @cached_property
    def code(self) -> Code:
        """The user's code behind all parts, as it was on first access."""
        own = (self.defense, self.model, self.partition, *self.splits.readers)
        return Code.of(lambda: [*own, self.base()])

    def identity(self, index: StudyIndex) -> Identity:
        """Return the training's identity. It leaves out the number of rounds, so that a training can be prolonged."""
        network, judged = self.base(), self.splits.judged
        schedule = {k: v for k, v in vars(self.schedule).items() if k != "rounds"}
        entries = {
            "model": repr(self.model),
            "weights": fingerprint(network.state_dict()),
            "layers": layers_of(network),
            "data": self.splits.found.source,
            "pixels": index.fingerprint(self.data),
            "judged": {name: index.fingerprint(images) for name, images in judged.items()},
            "defense": repr(self.defense),
            "plan": repr(self.plan),
            "partition": repr(self.partition),
            **schedule,
            "seed": self.seed,
            "device": str(self.device),
            "threads": self.threads,
        }
        return Identity(entries, self.code, index)


def _evenly(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` places with equally many of each class, and use each image of a class once before repeating any."""
    places = []
    for label in labels.unique().tolist():
        own = (labels == label).nonzero()[:, 0]
        times = -(-count // len(own))
        places.append(torch.cat([own[torch.randperm(len(own), generator=generator)] for _ in range(times)]))
    dealt = [own[turn] for turn in range(count) for own in places][:count]
    return torch.stack(dealt)[torch.randperm(count, generator=generator)]
