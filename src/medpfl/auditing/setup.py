"""An audit, built and checked before any work is done: what is wrong is said at once."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medpfl.auditing.derivatives import check_derivatives
from medpfl.auditing.engine import check_network, check_trainable, generator_of, seed_of, stack_size
from medpfl.auditing.inputs import GivenModel
from medpfl.auditing.key import StudyIndex
from medpfl.auditing.recorded import Recorded
from medpfl.auditing.store import JobKey
from medpfl.auditing.victims import draw_victims
from medpfl.core.errors import InputError, listed
from medpfl.core.plan import Plan
from medpfl.core.roles import Attack, Defense, Model
from medpfl.core.threat import ThreatModel
from medpfl.core.types import Weights
from medpfl.core.verdicts import RANDOM_UPDATE
from medpfl.data.images import LabelledImages
from medpfl.data.partition import Partition
from medpfl.defenses import NoDefense
from medpfl.metrics.pixel import ssim
from medpfl.models.weights import check_finite, load_weights

__all__ = ["Setup"]

_RANDOM_UPDATES = 8
"""Victims of the random-update control, for each attack."""


@dataclass(frozen=True, eq=False)
class Setup:
    """Everything that the rows of an audit are a function of.

    Attributes:
        model, weights: the network's recipe, and a file or the state that it starts from.
        data, source: the images, and how their source is called.
        attacks, defenses: the undefended control is the first defense.
        threat, plan, partition: the scenario.
        images, draws: how many images to attack, under how many draws of untrained weights.
        seed, memory, device: of the run.
    """

    model: Model
    weights: Path | Weights | None
    data: LabelledImages
    source: str
    attacks: list[Attack]
    defenses: list[Defense]
    threat: ThreatModel
    plan: Plan
    partition: Partition
    images: int
    draws: int
    seed: int
    memory: float
    device: torch.device

    def check(self) -> None:
        """Raises `InputError` for what cannot work."""
        if not self.attacks:
            raise InputError("no attack was given: 'medpfl list' names them")
        if self.draws < 1:
            raise InputError(f"draws is {self.draws}: it must be at least 1")
        if self.draws > 1 and (self.weights is not None or isinstance(self.model, GivenModel)):
            raise InputError("draws above 1 are draws of untrained weights: this model's weights are given")
        if self.draws > 1 and _equal(self.network(0), self.network(1)):
            raise InputError(
                f"{self.draws} draws of untrained weights were asked for, but two draws of this model have the same: "
                "it loads or sets its own; leave --draws at 1"
            )
        ssim(self._probe, self._probe)  # refuses images that are too small for it
        _ = self.outputs, self.stack, self.wrong_layer  # all run the network

    @cached_property
    def victims(self) -> list[Tensor]:
        """Index tensors (N,) of the updates to attack; the same for every attack, defense and draw."""
        generator = generator_of(self.seed, "victims")
        return draw_victims(self.data, self.images, self.plan.images, self.partition, generator)

    def network(self, draw: int) -> nn.Module:
        """The global model of a draw, with its weights."""
        network = self.model.build(self.data.shape, len(self.data.classes), seed_of(self.seed, "weights", draw))
        if isinstance(self.weights, Path):
            load_weights(network, self.weights)
        elif self.weights is not None:
            _set_weights(network, self.weights)
        check_trainable(network)
        check_finite(network)
        return network.to(self.device)

    @cached_property
    def _probe(self) -> Tensor:
        return self.data.images[self.victims[0][: self.plan.batch_size]].to(self.device)

    @cached_property
    def outputs(self) -> int:
        """Classes that the model tells apart."""
        return check_network(self.network(0), self._probe, len(self.data.classes), self.plan)

    @cached_property
    def wrong_layer(self) -> str | None:
        """The layer whose second derivative is wrong, if any."""
        network, few = self.network(0), min(2, self.plan.batch_size)
        images = torch.rand(few, *self.data.shape, generator=generator_of(0, "probe")).to(self.device)
        return check_derivatives(network, images, self.outputs, self.plan)

    @cached_property
    def stack(self) -> int:
        """Victims attacked together."""
        network = self.network(0).train(self.plan.mode == "train")
        images = self.data.images[self.victims[0]].to(self.device)
        return min(stack_size(network, images, self.memory), len(self.victims))

    @cached_property
    def jobs(self) -> dict[JobKey, int]:
        """All jobs in their order, with the number of rows of each."""
        sizes = [len(part) * self.plan.images for part in self._stacks()]
        few = min(_RANDOM_UPDATES, self.stack, len(self.victims)) * self.plan.images
        control = repr(NoDefense())
        jobs = {JobKey(RANDOM_UPDATE, 0, control, repr(a), 0): few for a in self.attacks}
        for draw in range(self.draws):
            for defense in self.defenses:
                for attack in self.attacks:
                    jobs |= {JobKey("", draw, repr(defense), repr(attack), i): n for i, n in enumerate(sizes)}
        return jobs

    def _stacks(self) -> list[list[Tensor]]:
        return [self.victims[i : i + self.stack] for i in range(0, len(self.victims), self.stack)]

    def of_job(self, job: JobKey) -> tuple[int, list[Tensor]]:
        """The number of a job's first victim, and its victims."""
        victims = self._stacks()[job.stack]
        return job.stack * self.stack, victims[: self.jobs[job] // self.plan.images]

    def identity(self, index: StudyIndex) -> dict[str, Any]:
        """What tells this audit from another one."""
        network = self.network(0)
        return {
            "model": repr(self.model),
            "weights": _fingerprint(network.state_dict()),
            "code": _code(network),
            "data": self.source,
            "pixels": index.fingerprint(self.data),
            "attacks": [repr(a) for a in self.attacks],
            "defenses": [repr(d) for d in self.defenses],
            "record": [[_fingerprint(d.contents()), repr(d.claimed)] for d in self.defenses if isinstance(d, Recorded)],
            "threat": repr(self.threat),
            "plan": repr(self.plan),
            "partition": repr(self.partition),
            "images": self.images,
            "draws": self.draws,
            "seed": self.seed,
            "memory": self.memory,
            "device": str(self.device),
        }


def _equal(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks have the same trained weights."""
    pairs = zip(one.parameters(), other.parameters(), strict=False)
    return all(torch.equal(a, b) for a, b in pairs if a.requires_grad)


def _fingerprint(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().view(-1).double().numpy().tobytes())
    return digest.hexdigest()[:16]


def _code(network: nn.Module) -> str:
    """Of a network's layers and source: two networks with the same weights may compute different things."""
    try:
        source = inspect.getsource(type(network))
    except (OSError, TypeError):  # made in an interpreter, or in C
        source = ""
    layers = re.sub(r" at 0x[0-9a-f]+", "", str(network))
    return hashlib.sha256(f"{layers}{source}".encode()).hexdigest()[:16]


def _set_weights(network: nn.Module, weights: Weights) -> None:
    """Puts a record's weights into a network, or says which of them do not fit."""
    state, given = network.state_dict(), {**weights.buffers, **weights.parameters}
    own = dict(network.named_parameters()) | dict(network.named_buffers())
    problems = [f"{k}: in the model, not in the record" for k in state if k not in given]
    for name, value in given.items():
        if name not in own:
            problems.append(f"{name}: in the record, not in the model")
        elif own[name].requires_grad != (name in weights.parameters):
            problems.append(f"{name}: trained in {'the record' if name in weights.parameters else 'the model'} only")
        elif own[name].shape != value.shape:
            problems.append(f"{name}: {tuple(value.shape)} in the record, {tuple(own[name].shape)} in the model")
        elif own[name].dtype != value.dtype:
            problems.append(f"{name}: {value.dtype} in the record, {own[name].dtype} in the model")
    if problems:
        raise InputError(f"the record does not fit the model:{listed(sorted(problems))}")
    network.load_state_dict({k: given[k] for k in state})
