"""The values in the pipeline ``truth -> sent -> seen -> guess -> Finding``. All are frozen.

Shapes: V victims, N images per update, (C, H, W) per image, K classes; in attacks, A attempts (a restart of a victim
each), D variables of an attempt, T patches. A single client's value has no victim axis; an
`Observation` and a `Reconstruction` always have one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
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

Ended = Literal["converged", "stalled", "max_steps", "out_of_budget", "nonfinite", "beaten"]
"""Reasons for an attack's end: objective below the tolerance; no further decrease; step limit reached; objective not
finite; pruned in favor of better restarts (``"beaten"``)."""


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
    """A model's state by name: its parameters and its buffers (batch-norm statistics)."""

    parameters: Tensors
    buffers: Tensors = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> Weights:
        """Return a model's detached weights. Frozen parameters (without gradient) count as buffers."""
        free = {k: v.detach() for k, v in model.named_parameters() if v.requires_grad}
        rest = {k: v.detach() for k, v in model.named_parameters() if not v.requires_grad}
        return cls(free, rest | {k: v.detach() for k, v in model.named_buffers()})


@dataclass(frozen=True, eq=False)
class Update:
    """An update that leaves a client.

    Attributes:
        tensors: a gradient or a weight difference (new minus old), by parameter name. Stacked: (V, ...) each.
        kind: ``"gradient"`` or ``"difference"``.
        buffers: the buffers after the round, if the plan sends them.
        num_samples: number of images in the update, if the plan sends it.
        buffers_before: the buffers before the round, which the server knows; set if `buffers` is. Filters need them,
            because they act on differences.
    """

    tensors: Tensors
    kind: Literal["gradient", "difference"] = "gradient"
    buffers: Tensors | None = None
    num_samples: int | None = None
    buffers_before: Tensors | None = None

    def replace(self, tensors: Tensors) -> Update:
        """Return the same update with other tensors."""
        return replace(self, tensors=tensors)

    def norm(self) -> Tensor:
        """Return the Euclidean norm over all tensors, in float64."""
        return torch.stack([t.double().square().sum() for t in self.tensors.values()]).sum().sqrt()

    @staticmethod
    def stack(updates: Sequence[Update]) -> Update:
        """Stack V updates of the same kind along a new leading victim axis."""
        first = updates[0]
        buffers = None if first.buffers is None else stack_tensors([u.buffers or {} for u in updates])
        return replace(first, tensors=stack_tensors([u.tensors for u in updates]), buffers=buffers, buffers_before=None)


@dataclass(frozen=True, eq=False)
class View:
    """The server's view of one round.

    Attributes:
        weights: the global model that the clients started from.
        plans: plans of the K clients in the update (K > 1 under secure aggregation).
        update: the update, stacked over victims. Under the grant ``defense``, disclosed maps are undone where possible.
        channel: the rest of the disclosure, stacked; only under the grant ``defense``, ``None`` if nothing is left. For
            a sum, its known part applies to each client's update; its precision and bounds apply to the mean.
    """

    weights: Weights
    plans: tuple[Plan, ...]
    update: Update
    channel: Channel | None = None

    def read(self, name: str) -> tuple[Tensor, Tensor]:
        """Return a parameter's update (V, ...) and a mask (V, ...) of the coordinates that carry information.

        A coordinate carries none if it was not sent: its value and its precision are then 0. A nonzero value with
        precision 0 was sent, but changed in an unknown way; its sign may still be informative.
        """
        sent = self.update.tensors[name]
        if self.channel is None or self.channel.precision is None:
            return sent, torch.ones_like(sent, dtype=torch.bool)
        return sent, (self.channel.precision[name] > 0) | (sent != 0)

    @property
    def plan(self) -> Plan:
        """The client's plan; raises `InputError` if the update is the sum of several clients."""
        if len(self.plans) != 1:
            raise InputError(
                f"this update is the sum of {len(self.plans)} clients, and this attack supports only one: use an "
                "attack that takes the plans of all, or audit without secure aggregation"
            )
        return self.plans[0]


@dataclass(frozen=True, eq=False)
class Observation:
    """Everything that an attack receives. No field holds a private image.

    Attributes:
        model: the architecture; use the weights in each view.
        views: one view, or several rounds with the same images.
        image_shape: the model's input shape (C, H, W) or (C, D, H, W).
        num_classes: K.
        labels: (V, N), or masks (V, N, H, W); only under the grant ``labels``.
        order: (V, epochs, N) indices; for a sum of K clients (V, K, epochs, N); only under the grant ``order``.
        masks: dropout masks (V, steps, ...) by layer; for a sum (V, K, steps, ...); only under the grant ``masks``.
        auxiliary: (M, C, H, W) other images; only under the grant ``auxiliary``.
        label_shape: shape of one label: () for a class, (H, W) or (D, H, W) for a mask.
        gray: True if it is known that the channels of every image are equal; only under the grant ``gray``.
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
    gray: bool = False

    def __len__(self) -> int:
        """Return the number of victims."""
        return len(next(iter(self.views[0].update.tensors.values())))

    def of(self, victims: Tensor) -> Observation:
        """Return the observation of some victims (A,), in order."""

        def some(tensors: Tensors | None) -> Tensors | None:
            return None if tensors is None else {name: t[victims.to(t.device)] for name, t in tensors.items()}

        views = []
        for view in self.views:
            update, channel = view.update, view.channel
            update = replace(update, tensors=some(update.tensors) or {}, buffers=some(update.buffers))
            if channel is not None:
                told = {name: some(getattr(channel, name)) for name in ("precision", "bounds", "known")}
                channel = replace(channel, **told)
            views.append(replace(view, update=update, channel=channel))
        own = {name: some({"": t}) for name in ("labels", "order") if (t := getattr(self, name)) is not None}
        return replace(
            self, views=tuple(views), masks=some(self.masks), **{name: one[""] for name, one in own.items() if one}
        )

    @property
    def num_images(self) -> int:
        """Number of images per update: as sent, or else from the plans."""
        view = self.views[0]
        return view.update.num_samples or sum(plan.images for plan in view.plans)


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """An attack's output, chosen without the target images.

    Attributes:
        guesses: reconstructed images (V, N, C, H, W) in [0, 1].
        labels: inferred labels (V, N), or masks (V, N, H, W); ``None`` if the attack infers none.
        loss: (V,) the attacker's own objective at the guess.
        steps: (V,) number of steps taken.
        evaluations: (V,) number of objective evaluations, all restarts together.
        ended: V reasons for the end, see `Ended`.
        candidates: (V, R, N, C, H, W) in the attacker's own order, the guess first; ``None`` if there is only one.
        engine: ``"vmap"`` if victims were evaluated together, else ``"loop"``.
        trace: (V, T, N, C, H, W) in [0, 1], iterates selected by their number alone, if the auditor asks for them
            (`medpfl.core.trace`); otherwise, and for attacks without iterates, ``None``.
        certificates: V sentences on why the attacker can be sure of its reading, found without the target images, such
            as zeros beyond chance, a rank, or an error bound. Each is printable ASCII, has at most 300 characters, and
            may be empty. ``()``: the attack gives none.
        found_by: V names of the attacks behind the guesses, for an attack that chooses among those of several. Each
            obeys the rules of a certificate. ``()``: the attack runs no other.
        unread: V reasons why an analytic attack read nothing of an update, by the same rules; ``""`` if it read
            something. A search of the same ensemble may have found the guess. ``()``: the attack states none.
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
    certificates: tuple[str, ...] = ()
    found_by: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for one in fields(self):  # a search may end with tensors that still require gradients
            if isinstance(value := getattr(self, one.name), Tensor) and value.requires_grad:
                object.__setattr__(self, one.name, value.detach())


@dataclass(frozen=True, slots=True)
class Finding:
    """One row: one image under one attack and one defense. Images and patients are named only by study indices.

    Attributes:
        attack, defense, model, data, plan: specs.
        grants: the attacker's grants.
        control: ``""``, or the name of the control that the row belongs to, such as ``"random-update"``.
        draw, stack, victim, position: place in the run: weight initialization, stack, update, image in the update.
        image, patient: random study indices; the key is beside the run directory.
        label, label_guess: class indices.
        scores: scores by metric, including those of the baselines (``mean_image_ssim``, ``noise_ncc``).
        success: True if SSIM >= 0.9.
        identified: True if the guess is nearer to its target image than to any other; ``None`` without a gallery.
        gallery: number of images in the gallery, the target image included; ``chance`` is the rate of a blind guess.
        nearest_image: study index of the gallery image nearest to the guess; ``None`` without a gallery.
        loss, steps, evaluations, ended: state at the end of the attack.
        flags: reasons to doubt the row.
        seed, engine, device, versions: what is needed to repeat the attack.
        seconds, date: duration of the attack per image, and its date.
        certificate: the attack's reason to be sure of its reading, the same for all images in the update; ``""`` if it
            gives none. Rows of older versions lack it.
        found_by: the attack behind the guess, if the row's attack chose among several; otherwise ``""``, as in rows of
            older versions.
        unread: why an analytic attack read nothing of the update; ``""`` if it read something or does not say, as in
            rows of older versions.
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
    certificate: str = ""
    found_by: str = ""
    unread: str = ""

    @property
    def knows_defense(self) -> bool:
        """True if the attack received the defense's disclosure."""
        return "defense" in self.grants

    def to_dict(self) -> dict[str, Any]:
        """Return the row as a JSON object."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Finding:
        """Return the row from a JSON object; raise `InputError` for an invalid field."""
        return typed(cls, row)
