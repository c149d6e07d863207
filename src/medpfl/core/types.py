"""The values that travel along the line ``truth -> sent -> seen -> guess -> Finding``. All frozen.

Shapes: V victims, N images of one update, (C, H, W) an image, K classes. A value of one client has no
victim axis; an `Observation` and a `Reconstruction` always have it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from medpfl.core.channels.channel import Channel, Tensors, stack_tensors
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.typed import typed

__all__ = [
    "Batch",
    "Channel",
    "Ended",
    "Finding",
    "Observation",
    "Reconstruction",
    "Tensors",
    "Update",
    "View",
    "Weights",
    "stack_tensors",
]

Ended = Literal["converged", "stalled", "max_steps", "nonfinite", "beaten"]
"""Objective below the tolerance; no further decrease; out of steps; not finite; given up for better starts."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Private images: ``images`` (N, C, H, W) in [0, 1]; ``labels`` (N,) classes or (N, K) probabilities.

    For segmentation, ``labels`` are masks: (N, H, W) classes, or (N, K, H, W) probabilities.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class Weights:
    """A model's state by name: its parameters, and its buffers (batch-norm statistics)."""

    parameters: Tensors
    buffers: Tensors = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> Weights:
        """The detached weights of a model; frozen parameters (no gradient) count as buffers."""
        free = {k: v.detach() for k, v in model.named_parameters() if v.requires_grad}
        rest = {k: v.detach() for k, v in model.named_parameters() if not v.requires_grad}
        return cls(free, rest | {k: v.detach() for k, v in model.named_buffers()})


@dataclass(frozen=True, eq=False)
class Update:
    """What leaves a client.

    Attributes:
        tensors: by parameter name; a gradient, or new minus old weights. Stacked: (V, ...) each.
        kind: which of the two.
        buffers: the buffers after the round, where the plan sends them.
        num_samples: images behind it, where the plan sends that.
    """

    tensors: Tensors
    kind: Literal["gradient", "difference"] = "gradient"
    buffers: Tensors | None = None
    num_samples: int | None = None

    def replace(self, tensors: Tensors) -> Update:
        """The same update with other tensors."""
        return replace(self, tensors=tensors)

    def norm(self) -> Tensor:
        """The Euclidean norm over all tensors, in float64."""
        return torch.stack([t.double().square().sum() for t in self.tensors.values()]).sum().sqrt()

    @staticmethod
    def stack(updates: Sequence[Update]) -> Update:
        """V updates of one kind as one, along a new leading victim axis."""
        first = updates[0]
        buffers = None if first.buffers is None else stack_tensors([u.buffers or {} for u in updates])
        return replace(first, tensors=stack_tensors([u.tensors for u in updates]), buffers=buffers)


@dataclass(frozen=True, eq=False)
class View:
    """One thing that the server saw.

    Attributes:
        weights: the global model that the clients started from.
        plans: of the K clients in it (K > 1 under secure aggregation).
        update: stacked over victims; with the maps undone that the defense discloses, where they can be.
        channel: what else the defense discloses, stacked; only under the grant ``defense``, and ``None`` where nothing
            is left. Of several clients, its known part is that of each client's update, and precision and bounds are
            of their mean.
    """

    weights: Weights
    plans: tuple[Plan, ...]
    update: Update
    channel: Channel | None = None

    def read(self, name: str) -> tuple[Tensor, Tensor]:
        """The update (V, ...) of a parameter, and which of its coordinates (V, ...) it says anything of.

        It says nothing where a coordinate was not sent: its value is 0 and its precision is 0. A value with a precision
        of 0 was sent, though nobody knows how the defense changed it: its sign may still tell something.
        """
        sent = self.update.tensors[name]
        if self.channel is None or self.channel.precision is None:
            return sent, torch.ones_like(sent, dtype=torch.bool)
        return sent, (self.channel.precision[name] > 0) | (sent != 0)

    @property
    def plan(self) -> Plan:
        """The plan of a view of one client; raises `InputError` if the update is the sum of several."""
        if len(self.plans) != 1:
            raise InputError(
                f"this update is the sum of {len(self.plans)} clients, and this attack reads those of one: take an "
                "attack that uses the plans of all, or audit without secure aggregation"
            )
        return self.plans[0]


@dataclass(frozen=True, eq=False)
class Observation:
    """Everything that an attack gets. No field holds a private image.

    Attributes:
        model: the architecture; its weights are those of each view.
        views: one, or several rounds of the same images.
        image_shape: (C, H, W) that the model takes.
        num_classes: K.
        labels: (V, N), or masks (V, N, H, W), only under the grant ``labels``.
        order: (V, epochs, N) indices, only under the grant ``order``; of a sum of K clients (V, K, epochs, N).
        masks: by dropout layer (V, steps, ...), only under the grant ``masks``; of a sum (V, K, steps, ...).
        auxiliary: (M, C, H, W) other images, only under the grant ``auxiliary``.
        label_shape: of an image's label: () for a class, (H, W) or (D, H, W) for a mask.
    """

    model: nn.Module
    views: tuple[View, ...]
    image_shape: tuple[int, ...]
    num_classes: int
    labels: Tensor | None = None
    order: Tensor | None = None
    masks: Tensors | None = None
    auxiliary: Tensor | None = None
    label_shape: tuple[int, ...] = ()

    def __len__(self) -> int:
        """Victims."""
        return len(next(iter(self.views[0].update.tensors.values())))

    @property
    def num_images(self) -> int:
        """Images behind one update: as sent, or else as the plan says."""
        view = self.views[0]
        return view.update.num_samples or sum(plan.images for plan in view.plans)


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What an attack makes of an observation, chosen without the truth.

    Attributes:
        guesses: (V, N, C, H, W) in [0, 1].
        labels: (V, N), or masks (V, N, H, W); ``None`` where the attack does not say.
        loss: (V,) the attacker's own objective at the guess.
        steps: (V,) steps taken.
        evaluations: (V,) evaluations of the objective, all restarts together.
        ended: V reasons.
        candidates: (V, R, N, C, H, W) in the attacker's own order, the guess first; ``None`` if there is one.
        engine: ``"vmap"`` where victims were evaluated together, else ``"loop"``.
        trace: (V, T, N, C, H, W) in [0, 1], iterates kept by their number alone, where the auditor asks for them
            (`medpfl.core.trace`); ``None`` elsewhere, and from attacks that have none.
    """

    guesses: Tensor
    labels: Tensor | None
    loss: Tensor
    steps: Tensor
    evaluations: Tensor
    ended: tuple[Ended, ...]
    candidates: Tensor | None = None
    engine: str = "loop"
    trace: Tensor | None = None


@dataclass(frozen=True)
class Finding:
    """One row: one image under one attack and one defense. Only study indices name images and patients.

    Attributes:
        attack, defense, model, data, plan: specs.
        grants: what the adversary was granted.
        control: ``""``, or what the row is compared with: ``"random-update"``.
        draw, stack, victim, position: place in the run: weight draw, stack, update, image in the update.
        image, patient: random study indices; the key is beside the run directory.
        label, label_guess: class indices.
        scores: by metric, with the baselines' (``mean_image_ssim``, ``nearest_ssim``).
        success: SSIM >= 0.9.
        identified: nearer to its own truth than to any other image; ``None`` without a gallery.
        gallery: images it was told from, its own included; ``chance``: the rate of a blind guess.
        nearest_image: study index of the gallery's image that the guess is nearest to; ``None`` without a gallery.
        loss, steps, evaluations, ended: how the attack ended.
        flags: reasons to doubt the row.
        seed, engine, device, versions: what it takes to make it again.
        seconds, date: of the attack, per image.
    """

    __pydantic_config__: ClassVar[Any] = {"strict": True, "extra": "forbid", "allow_inf_nan": False}

    attack: str
    defense: str
    model: str
    data: str
    plan: str
    grants: tuple[str, ...]
    control: str
    draw: int
    stack: int
    victim: int
    position: int
    image: str
    patient: str | None
    label: int
    label_guess: int | None
    scores: dict[str, float | None]
    success: bool
    identified: bool | None
    gallery: int
    chance: float | None
    nearest_image: str | None
    loss: float | None
    steps: int
    evaluations: int
    ended: str
    flags: tuple[str, ...]
    seed: int
    engine: str
    device: str
    versions: dict[str, str]
    seconds: float
    date: str

    @property
    def knows_defense(self) -> bool:
        """Whether the attack was told what the defense discloses of itself."""
        return "defense" in self.grants

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Finding:
        """The row back from JSON; raises `InputError` for a field of another type."""
        return typed(cls, row)
