"""An audit, built and checked before any work is done: what is wrong is said at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from medpfl import attacks as attack_package
from medpfl.auditing.aggregation import Group, aggregates, check_sum, masks, staying
from medpfl.auditing.defense_parts import at_client, discloses, untold
from medpfl.auditing.isolating import Recipe
from medpfl.auditing.recorded import Recorded, behind
from medpfl.auditing.victims import draw_victims
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.roles import NO_DEFENSE, Attack, DataSource, Defense, Model
from medpfl.core.spec import registry
from medpfl.core.threat import ThreatModel
from medpfl.core.types import Weights
from medpfl.core.verdicts import MASKED, RANDOM_UPDATE
from medpfl.data.images import LabelledImages
from medpfl.data.partition import Partition
from medpfl.federated.ready import check_separable, prepare
from medpfl.inputs.network import check_network, label_shape_of, network_of
from medpfl.inputs.parts import GivenModel
from medpfl.inspection.derivatives import check_derivatives
from medpfl.isolation.parent import Isolated
from medpfl.metrics.pixel import ssim
from medpfl.runs.environment import checked_module, explained, generator_of, naming, seed_of, stack_size
from medpfl.runs.identity import Code, Identity, fingerprint, layers_of
from medpfl.runs.jobs import JobKey
from medpfl.runs.study_key import StudyIndex

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
        iterates: whether the iterate that is nearest to the truth is scored too, which no attacker can pick.
        reader: what read the images.
        recipe: of model and defenses, for attacks in a process of their own; ``None`` where there are none.
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
    iterates: bool = False
    reader: DataSource | None = None
    recipe: Recipe | None = None

    def check(self) -> None:
        """Raises `InputError` for what cannot work."""
        if not self.attacks:
            raise InputError("no attack was given: 'medpfl list' names them")
        if self.draws > 1 and (self.weights is not None or isinstance(self.model, GivenModel)):
            raise InputError("draws above 1 are draws of untrained weights: this model's weights are given")
        _ = self.code  # before any of it runs
        if self.draws > 1 and _equal(self.network(0), self.network(1)):
            raise InputError(
                f"{self.draws} draws of untrained weights were asked for, but two draws of this model have the same: "
                "it loads or sets its own; leave --draws at 1"
            )
        for defense in self.defenses:
            with explained(f"{defense!r} cannot be asked what it does"):
                self._check_defense(defense)
        ssim(self._probe, self._probe)  # refuses images that are too small for it
        _ = self.outputs, self.wrong_layer, *(self.stack(d) for d in self.defenses)  # all run the network
        if self.plan.loss == "dice" and not self.label_shape:
            raise InputError("loss dice is of masks, and this model gives one class for an image: use cross_entropy")
        self._check_attacks()

    def _check_defense(self, defense: Defense) -> None:
        if at_client(defense).acts("gradient"):
            with naming(defense):
                check_separable(prepare(self.network(0), self.plan))
        if aggregates(defense):
            check_sum(defense, self.clients, self.plan)
        self._knowledge_of(defense)

    def _check_attacks(self) -> None:
        """Every attack, on the model as each defense leaves it."""
        for defense, (ready, plans) in zip(self.defenses, self._scenes(), strict=True):
            for attack in self.attacks:
                with naming(attack), explained("it cannot look at this model"):
                    self.placed(attack, defense).check(ready, plans, self.data.shape)

    def _scenes(self) -> Iterator[tuple[nn.Module, tuple[Plan, ...]]]:
        """The model as each defense leaves it, and the plans of the clients in an update."""
        for defense in self.defenses:
            generator = generator_of(self.seed, "model", 0, repr(defense))
            with naming(defense), explained("it cannot change this model"):
                changed, _ = defense.model(self.network(0), defense.init(), generator)
                ready = prepare(checked_module(changed), self.plan)
            yield ready, (self.plan,) * self._in_sum(defense)

    def placed(self, attack: Attack, layers: Defense | None = None, told: Defense | None = None) -> Attack:
        """The attack, which is told how to make the model where it runs in a process of its own.

        Args:
            attack: any attack.
            layers: the defense whose layers the model has; ``None``: none.
            told: the defense that says what it discloses; ``None``: the same.
        """
        if not isinstance(attack, Isolated):
            return attack
        assert self.recipe is not None
        layers = layers or NO_DEFENSE
        shape, classes = self.data.shape, len(self.data.classes)
        return attack.on(self.recipe.scene(layers, told or layers, shape, classes, str(self.device)))

    @cached_property
    def untried(self) -> list[Attack]:
        """Attacks that are made for models like this one, and are not run.

        They refuse most models and not this one, under any of its defenses, or have settings for it.
        """
        run, registered = {_home(type(attack)) for attack in self.attacks}, registry(attack_package).values()
        kinds = [kind for kind in registered if _home(kind) not in run and kind.specialized]
        network = None
        with suppress(InputError), explained("it cannot be made ready"):  # which is for `check` to say
            for ready, plans in self._scenes() if kinds else ():
                kinds = [kind for kind in kinds if self._takes(kind(), ready, plans)]
            network = self.network(0)
        if network is None:
            return []
        suited: list[Attack] = []
        for attack in self.attacks:
            with explained(f"{type(attack).__name__} cannot say which settings suit this model"):
                suited += [found for found in self.placed(attack).suited(network) if found not in self.attacks]
        return [kind() for kind in kinds] + suited

    def _takes(self, attack: Attack, ready: nn.Module, plans: tuple[Plan, ...]) -> bool:
        with suppress(InputError), explained("it cannot be run as the check runs it"):
            attack.check(ready, plans, self.data.shape)
            return True
        return False

    @cached_property
    def victims(self) -> list[Tensor]:
        """Index tensors (N,) of the updates to attack; the same for every attack, defense and draw."""
        generator, together = generator_of(self.seed, "victims"), max(map(self.together, self.defenses))
        with explained("the images cannot be dealt to clients"):
            return draw_victims(self.data, self.images, self.plan.images, self.partition, generator, together)

    @property
    def adversary(self) -> ThreatModel:
        """The adversary whose attacks judge: it is told what defenses disclose, unless that is withheld."""
        judged = any(at_client(behind(defense)) != NO_DEFENSE for defense in self.defenses)
        return self.threat.granting("defense") if judged and True in self.threat.told else self.threat

    @property
    def clients(self) -> int:
        """Clients of a round."""
        return getattr(self.partition, "clients", 1)

    def together(self, defense: Defense) -> int:
        """Clients whose updates reach the server as one."""
        return self.clients if aggregates(defense) else 1

    def network(self, draw: int) -> nn.Module:
        """The global model of a draw, with its weights."""
        seed = seed_of(self.seed, "weights", draw)
        return network_of(self.model, self.data.shape, len(self.data.classes), seed, self.weights).to(self.device)

    @cached_property
    def _probe(self) -> Tensor:
        return self.data.images[self.victims[0][: self.plan.batch_size]].to(self.device)

    @cached_property
    def outputs(self) -> int:
        """Classes that the model tells apart."""
        masks, network = self.data.masks is not None, self.network(0)
        return check_network(network, self._probe, len(self.data.classes), self.plan, masks)

    @cached_property
    def label_shape(self) -> tuple[int, ...]:
        """Of what the model tells of an image: () a class, (H, W) or (D, H, W) a mask."""
        return label_shape_of(self.network(0), self._probe, self.plan)

    @property
    def truths(self) -> Tensor:
        """What the client trains the model to tell: classes (M,), or masks (M, H, W)."""
        return self.data.masks if self.label_shape and self.data.masks is not None else self.data.labels

    @cached_property
    def wrong_layer(self) -> str | None:
        """The layer whose second derivative is wrong, if any."""
        network, few = self.network(0), min(2, self.plan.batch_size)
        images = torch.rand(few, *self.data.shape, generator=generator_of(0, "probe")).to(self.device)
        return check_derivatives(network, images, self.outputs, self.plan)

    def stack(self, defense: Defense) -> int:
        """Victims attacked together."""
        return self._stack(self.together(defense))

    @cached_property
    def _stack(self) -> Callable[[int], int]:
        return cache(self._stack_of)

    def _stack_of(self, together: int) -> int:
        network = self.network(0).train(self.plan.mode == "train")
        images = self.data.images[torch.cat(self.victims[:together])].to(self.device)
        return min(stack_size(network, images, self.memory), len(self.victims) // together)

    @cached_property
    def jobs(self) -> dict[JobKey, int]:
        """All jobs in their order, with the number of rows of each."""
        jobs = {JobKey(RANDOM_UPDATE, 0, repr(NO_DEFENSE), repr(a), 0): self._few(NO_DEFENSE) for a in self.attacks}
        for defense in filter(masks, self.defenses):
            jobs |= {JobKey(MASKED, 0, repr(defense), repr(a), 0): self._few(defense) for a in self.attacks}
        for draw in range(self.draws):
            for defense in self.defenses:
                sizes = [len(part) * self._images(defense) for part in self._stacks(defense)]
                for attack, knows in product(self.attacks, self._knowledge_of(defense)):
                    key = ("", draw, repr(defense), repr(attack))
                    jobs |= {JobKey(*key, i, knows): n for i, n in enumerate(sizes)}
        return jobs

    def _knowledge_of(self, defense: Defense) -> tuple[bool, ...]:
        """Return one run where there is nothing to know, or nothing of it is told; else both ways, or as granted."""
        if at_client(behind(defense)) == NO_DEFENSE or untold(defense):
            return (False,)
        return self.threat.told if discloses(defense) else (False,)

    def _few(self, defense: Defense) -> int:
        """Rows of a control."""
        return min(_RANDOM_UPDATES, self.stack(defense)) * self.plan.images

    def _images(self, defense: Defense) -> int:
        """Images behind what the server gets."""
        return self.plan.images * self._in_sum(defense)

    def _in_sum(self, defense: Defense) -> int:
        """Clients whose images are in what the server gets."""
        return staying(defense, self.clients) if aggregates(defense) else 1

    def _stacks(self, defense: Defense) -> list[list[Group]]:
        together, most = self.together(defense), self.stack(defense)
        numbered = list(enumerate(self.victims))
        groups = [tuple(numbered[i : i + together]) for i in range(0, len(numbered), together)]
        return [groups[i : i + most] for i in range(0, len(groups), most)]

    def of_job(self, job: JobKey) -> list[Group]:
        """A job's victims: each the clients whose updates reach the server together."""
        (defense,) = (d for d in self.defenses if repr(d) == job.defense)
        images = self.plan.images if job.control else self._images(defense)
        return self._stacks(defense)[job.stack][: self.jobs[job] // images]

    @cached_property
    def code(self) -> Code:
        """The user's own code behind all parts, as it is when this is first asked for."""
        own = (*self.attacks, *self.defenses, self.model, self.partition, self.reader)
        return Code.of(lambda: [*own, self.network(0)])

    def identity(self, index: StudyIndex) -> Identity:
        """What tells this audit from another one."""
        network = self.network(0)
        entries = {
            "model": repr(self.model),
            "weights": fingerprint(network.state_dict()),
            "layers": layers_of(network),
            "data": self.source,
            "pixels": index.fingerprint(self.data),
            "attacks": [repr(a) for a in self.attacks],
            "defenses": [repr(d) for d in self.defenses],
            "record": [[fingerprint(d.contents()), repr(d.claimed)] for d in self.defenses if isinstance(d, Recorded)],
            "threat": repr(self.adversary),
            "knowledge": list(self.threat.told),
            "plan": repr(self.plan),
            "partition": repr(self.partition),
            "images": self.images,
            "draws": self.draws,
            "seed": self.seed,
            "memory": self.memory,
            "device": str(self.device),
            **({"iterates": True} if self.iterates else {}),
        }
        return Identity(entries, self.code, index)


def _home(kind: type) -> tuple[str, str]:
    """What a class is called; that of an attack in a process of its own is made anew, under the same name."""
    return kind.__module__, kind.__qualname__


def _equal(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks have the same trained weights."""
    pairs = zip(one.parameters(), other.parameters(), strict=False)
    return all(torch.equal(a, b) for a, b in pairs if a.requires_grad)
