"""An audit's scenario: everything that determines its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from medpfl.auditing.aggregation import aggregates, staying
from medpfl.auditing.defense_parts import at_client
from medpfl.auditing.isolating import Recipe
from medpfl.auditing.records.recorded import Recorded, behind
from medpfl.auditing.victims import draw_victims
from medpfl.core.experiments.groups import Criteria, Run, Victims
from medpfl.core.plan import Plan
from medpfl.core.roles import NO_DEFENSE, Attack, DataSource, Defense, Model
from medpfl.core.threat import ThreatModel
from medpfl.core.types import Weights
from medpfl.core.user_code.copies import copied
from medpfl.data.images import LabelledImages
from medpfl.data.partition import Partition
from medpfl.federated.ready import prepare
from medpfl.inputs.network import check_network, label_shape_of, network_of
from medpfl.isolation.parent import Isolated
from medpfl.runs.environment import (
    checked_module,
    device_of,
    explained,
    generator_of,
    naming,
    seed_of,
    stack_size,
    victim_size,
)
from medpfl.runs.identity import Code, Identity, fingerprint, layers_of
from medpfl.runs.study_key import StudyIndex

__all__ = ["Scenario"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Scenario:
    """Everything that determines an audit's rows.

    Attributes:
        model, weights: the model, and its initial weights as a file or a state.
        data, source: the images, and their source's name.
        attacks, defenses: attacks and defenses to run; the undefended control is the first defense.
        threat, plan, partition: threat model, local training, and distribution of images among clients.
        selection, criteria, run: as in `medpfl.audit`, which calls the first ``victims``.
        reader: data source behind the images, if any.
        recipe: recipe of model and defenses for isolated attacks; ``None`` if there are none.
        whole: True never splits a stack of victims; one that runs out of memory is then an error.
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
    whole: bool = False

    @cached_property
    def device(self) -> torch.device:
        """The device for all computation."""
        return device_of(self.run.device)

    @property
    def adversary(self) -> ThreatModel:
        """The threat model behind the verdict: the attacker knows the defenses' disclosures, unless withheld."""
        judged = any(at_client(behind(defense)) != NO_DEFENSE for defense in self.defenses)
        return self.threat.granting("defense") if judged and True in self.threat.knowledge else self.threat

    @property
    def clients(self) -> int:
        """The number of clients in a round."""
        return getattr(self.partition, "clients", 1)

    def together(self, defense: Defense) -> int:
        """Return how many clients' updates the defense sums into one."""
        return self.clients if aggregates(defense) else 1

    def in_sum(self, defense: Defense) -> int:
        """Return how many clients' images are behind one update or sum at the server."""
        return staying(defense, self.clients) if aggregates(defense) else 1

    def network(self, draw: int) -> nn.Module:
        """Return a new copy of the global model with the weights of a draw."""
        return copied(self._last_built(draw)).to(self.device)

    @cached_property
    def _last_built(self) -> Callable[[int], nn.Module]:
        return lru_cache(maxsize=1)(self._build)  # one draw's network is enough: a large one takes much memory

    def _build(self, draw: int) -> nn.Module:
        seed = seed_of(self.run.seed, "weights", draw)
        return network_of(self.model, self.data.shape, len(self.data.classes), seed, self.weights)

    @cached_property
    def victims(self) -> Tensor:
        """Image indices (U, N) for the U updates to attack; the same for every attack, defense and draw."""
        generator, together = generator_of(self.run.seed, "victims"), max(map(self.together, self.defenses))
        assert self.selection.images is not None, "`fitted` comes first"
        with explained("the images cannot be distributed among clients"):
            drawn = draw_victims(
                self.data, self.selection.images, self.plan.images, self.partition, generator, together
            )
        return torch.stack(drawn)

    @cached_property
    def probe(self) -> Tensor:
        """One batch of the first victim's images (N, C, H, W), for checks."""
        return self.data.images[self.victims[0][: self.plan.batch_size]].to(self.device)

    @cached_property
    def outputs(self) -> int:
        """The number of predicted classes."""
        masks, network = self.data.masks is not None, self.network(0)
        return check_network(network, self.probe, len(self.data.classes), self.plan, masks)

    @cached_property
    def label_shape(self) -> tuple[int, ...]:
        """The shape of an image's label: () for a class, (H, W) or (D, H, W) for a mask."""
        return label_shape_of(self.network(0), self.probe, self.plan)

    @property
    def truths(self) -> Tensor:
        """The client's training labels: classes (M,), or masks (M, H, W)."""
        return self.data.masks if self.label_shape and self.data.masks is not None else self.data.labels

    def scenes(self) -> Iterator[tuple[nn.Module, tuple[Plan, ...]]]:
        """Yield, for each defense, the model as it changes it, and the plans of the clients behind one update."""
        for defense in self.defenses:
            generator = generator_of(self.run.seed, "model", 0, repr(defense))
            with naming(defense), explained("it cannot change this model"):
                changed, _ = defense.model(self.network(0), defense.init(), generator)
                ready = prepare(checked_module(changed), self.plan)
            yield ready, (self.plan,) * self.in_sum(defense)

    def placed(self, attack: Attack, layers: Defense | None = None, told: Defense | None = None) -> Attack:
        """Return the attack, ready to run; an isolated attack gets the recipe for the model.

        Args:
            attack: any attack.
            layers: defense whose layers the model has; ``None`` for no defense.
            told: defense whose disclosure the attack gets; ``None`` for the same as `layers`.
        """
        if not isinstance(attack, Isolated):
            return attack
        assert self.recipe is not None
        layers = layers or NO_DEFENSE
        shape, classes = self.data.shape, len(self.data.classes)
        return attack.on(self.recipe.scene(layers, told or layers, shape, classes, str(self.device)))

    def stack(self, defense: Defense) -> int:
        """Return how many victims are attacked together."""
        return self._stack(self.together(defense))

    def gib(self, defense: Defense) -> float:
        """Return the GiB that a stack takes beyond its first victim, by a fixed estimate."""
        return self.victim_gib(defense) * (self.stack(defense) - 1)

    def victim_gib(self, defense: Defense) -> float:
        """Return the GiB that the attack on one update takes, by a fixed estimate."""
        network = self.network(0).train(self.plan.mode == "train")
        return victim_size(network, self.probe, self.plan, self.together(defense))

    @cached_property
    def _stack(self) -> Callable[[int], int]:
        return cache(self._stack_of)

    def _stack_of(self, together: int) -> int:
        network = self.network(0).train(self.plan.mode == "train")
        size = stack_size(network, self.probe, self.plan, self.run.memory, together)
        return min(size, len(self.victims) // together)

    @cached_property
    def code(self) -> Code:
        """The user's own code behind all parts, as it is at the first access."""
        own = (*self.attacks, *self.defenses, self.model, self.partition, self.reader)
        return Code.of(lambda: [*own, self._build(0)])  # a new one: what building imports counts as imported

    @cached_property
    def weights_digest(self) -> str:
        """A digest of the first draw's weights and buffers."""
        return fingerprint(self.network(0).state_dict())

    def identity(self, index: StudyIndex) -> Identity:
        """Return everything that distinguishes this audit from others."""
        network = self.network(0)
        entries = {
            "model": repr(self.model),
            "weights": self.weights_digest,
            "layers": layers_of(network),
            "data": self.source,
            "pixels": index.fingerprint(self.data),
            "attacks": [repr(a) for a in self.attacks],
            "defenses": [repr(d) for d in self.defenses],
            "record": [[fingerprint(d.contents()), d.acting] for d in self.defenses if isinstance(d, Recorded)],
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
