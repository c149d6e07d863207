"""The scenario of an audit: everything that its rows are a function of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from medpfl.auditing.aggregation import aggregates, staying
from medpfl.auditing.defense_parts import at_client
from medpfl.auditing.isolating import Recipe
from medpfl.auditing.recorded import Recorded, behind
from medpfl.auditing.victims import draw_victims
from medpfl.core.experiments.groups import Criteria, Run, Victims
from medpfl.core.plan import Plan
from medpfl.core.roles import NO_DEFENSE, Attack, DataSource, Defense, Model
from medpfl.core.threat import ThreatModel
from medpfl.core.types import Weights
from medpfl.data.images import LabelledImages
from medpfl.data.partition import Partition
from medpfl.federated.ready import prepare
from medpfl.inputs.network import check_network, label_shape_of, network_of
from medpfl.isolation.parent import Isolated
from medpfl.runs.environment import checked_module, device_of, explained, generator_of, naming, seed_of, stack_size
from medpfl.runs.identity import Code, Identity, fingerprint, layers_of
from medpfl.runs.study_key import StudyIndex

__all__ = ["Scenario"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Scenario:
    """Everything that the rows of an audit are a function of.

    Attributes:
        model, weights: the network's recipe, and a file or the state that it starts from.
        data, source: the images, and how their source is called.
        attacks, defenses: the undefended control is the first defense.
        threat, plan, partition: the scenario.
        selection, criteria, run: as in `medpfl.audit`, which calls the first ``victims``.
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
    selection: Victims
    criteria: Criteria
    run: Run
    reader: DataSource | None = None
    recipe: Recipe | None = None

    @cached_property
    def device(self) -> torch.device:
        """The device of the computation."""
        return device_of(self.run.device)

    @property
    def adversary(self) -> ThreatModel:
        """The adversary whose attacks judge: it is told what defenses disclose, unless that is withheld."""
        judged = any(at_client(behind(defense)) != NO_DEFENSE for defense in self.defenses)
        return self.threat.granting("defense") if judged and True in self.threat.knowledge else self.threat

    @property
    def clients(self) -> int:
        """Clients of a round."""
        return getattr(self.partition, "clients", 1)

    def together(self, defense: Defense) -> int:
        """Clients whose updates reach the server as one."""
        return self.clients if aggregates(defense) else 1

    def in_sum(self, defense: Defense) -> int:
        """Clients whose images are in what the server gets."""
        return staying(defense, self.clients) if aggregates(defense) else 1

    def network(self, draw: int) -> nn.Module:
        """The global model of a draw, with its weights."""
        seed = seed_of(self.run.seed, "weights", draw)
        return network_of(self.model, self.data.shape, len(self.data.classes), seed, self.weights).to(self.device)

    @cached_property
    def victims(self) -> list[Tensor]:
        """Index tensors (N,) of the updates to attack; the same for every attack, defense and draw."""
        generator, together = generator_of(self.run.seed, "victims"), max(map(self.together, self.defenses))
        with explained("the images cannot be dealt to clients"):
            return draw_victims(self.data, self.selection.images, self.plan.images, self.partition, generator, together)

    @cached_property
    def probe(self) -> Tensor:
        """A batch of the first victim's images (N, C, H, W)."""
        return self.data.images[self.victims[0][: self.plan.batch_size]].to(self.device)

    @cached_property
    def outputs(self) -> int:
        """Classes that the model tells apart."""
        masks, network = self.data.masks is not None, self.network(0)
        return check_network(network, self.probe, len(self.data.classes), self.plan, masks)

    @cached_property
    def label_shape(self) -> tuple[int, ...]:
        """Of what the model tells of an image: () a class, (H, W) or (D, H, W) a mask."""
        return label_shape_of(self.network(0), self.probe, self.plan)

    @property
    def truths(self) -> Tensor:
        """What the client trains the model to tell: classes (M,), or masks (M, H, W)."""
        return self.data.masks if self.label_shape and self.data.masks is not None else self.data.labels

    def scenes(self) -> Iterator[tuple[nn.Module, tuple[Plan, ...]]]:
        """The model as each defense leaves it, and the plans of the clients in an update."""
        for defense in self.defenses:
            generator = generator_of(self.run.seed, "model", 0, repr(defense))
            with naming(defense), explained("it cannot change this model"):
                changed, _ = defense.model(self.network(0), defense.init(), generator)
                ready = prepare(checked_module(changed), self.plan)
            yield ready, (self.plan,) * self.in_sum(defense)

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

    def stack(self, defense: Defense) -> int:
        """Victims attacked together."""
        return self._stack(self.together(defense))

    @cached_property
    def _stack(self) -> Callable[[int], int]:
        return cache(self._stack_of)

    def _stack_of(self, together: int) -> int:
        network = self.network(0).train(self.plan.mode == "train")
        images = self.data.images[torch.cat(self.victims[:together])].to(self.device)
        return min(stack_size(network, images, self.run.memory), len(self.victims) // together)

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
            "knowledge": list(self.threat.knowledge),
            "plan": repr(self.plan),
            "partition": repr(self.partition),
            **self.selection.told(),
            **self.criteria.told(),
            **self.run.told(),
            "device": str(self.device),
        }
        return Identity(entries, self.code, index)
