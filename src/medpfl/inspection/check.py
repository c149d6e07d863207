"""``medpfl check-model``: what a model's updates leak by construction, and which attacks apply."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from medpfl import attacks as attack_package
from medpfl.attacks.deep.capacity import capacity_of, traced_graph
from medpfl.attacks.matching.problem import stacks
from medpfl.attacks.worst_case import LEAST
from medpfl.core.errors import InputError
from medpfl.core.experiments.limits import check_classes, check_image_shape
from medpfl.core.plan import Plan
from medpfl.core.progress import phase
from medpfl.core.roles import Attack, Model
from medpfl.core.spec import registry
from medpfl.core.types import Batch, Weights
from medpfl.federated.kernels import differentiable_kernels
from medpfl.federated.local import local_update
from medpfl.federated.ready import prepare
from medpfl.inputs.network import check_network, label_shape_of, network_of
from medpfl.inputs.parts import model_of
from medpfl.inspection.derivatives import ONCE, check_derivatives
from medpfl.inspection.facts import facts_of
from medpfl.inspection.leaks import Scene, labels_told, linear_inputs, statistics_told
from medpfl.runs.environment import explained, generator_of, seed_of

__all__ = ["ModelCheck", "check_model", "shortened_names"]

_TOGETHER = 4
_BATCH = 8
_BATCHES = (1, 2, 4, 8, 16, 32, 64)
"""Batch sizes for which the equations are counted."""


@dataclass(frozen=True)
class ModelCheck:
    """Result of a model check, in numbers, strings and lists.

    Attributes:
        model, image_shape, outputs, mode: the model and the settings that were checked.
        fewest: the smallest batch that the model takes: 2 if batch norm in train mode meets a single value, else 1.
        facts: see `medpfl.inspection.facts.facts_of`.
        labels: by number of images per update, see `medpfl.inspection.leaks.labels_told`.
        linear: see `linear_inputs`.
        statistics: see `statistics_told`.
        derivatives: ``twice`` and ``together`` (`torch.func.vmap`): ``""``, or why it fails; ``wrong``: a layer whose
            second derivative loses a path.
        attacks: ``""`` by attack name, or why the attack does not apply.
        capacity: by mode, ``why`` (``""``, or why nothing can be counted) and ``batches``, which has the fields of a
            `medpfl.attacks.deep.capacity.Capacity` for batches of 1 to 64 images.
        seconds: times for the smallest batch: ``forward``, ``gradient`` (an update), ``second`` (its derivative by the
            image), ``together`` (the same per victim, for four victims by vmap; ``None`` if it fails), and
            ``audits_together``: True if audits use vmap for this model.
    """

    model: str
    image_shape: tuple[int, ...]
    outputs: int
    mode: str
    fewest: int
    facts: dict[str, Any]
    labels: dict[str, dict[str, Any]]
    linear: list[dict[str, Any]]
    statistics: dict[str, Any]
    derivatives: dict[str, str]
    attacks: dict[str, str]
    capacity: dict[str, dict[str, Any]]
    seconds: dict[str, float | bool | None]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON data."""
        return asdict(self)


def check_model(
    model: str | Model | nn.Module,
    image_shape: tuple[int, ...] = (1, 32, 32),
    classes: int = 2,
    *,
    weights: str | Path | None = None,
    mode: str = "train",
    seed: int = 0,
) -> ModelCheck:
    """Check a model with random images.

    Args:
        model: the model, as in `medpfl.audit`.
        image_shape: shape (C, H, W) or (C, D, H, W) of the images.
        classes: number of classes in the data.
        weights: path of a weights file.
        mode: mode of batch norm and dropout at the client.
        seed: seed for untrained weights and images.

    Raises:
        InputError: the model cannot be built, or does not take such images.

    >>> check_model("MLP((16,))", (1, 12, 12)).linear[0]["read"]
    'exactly'
    """
    image_shape, classes = check_image_shape(image_shape), check_classes(classes)
    made = model_of(model)
    weights = None if weights is None else Path(weights)
    network = network_of(made, image_shape, classes, seed_of(seed, "weights", 0), weights)
    images = torch.rand(2, *image_shape, generator=generator_of(seed, "images"))
    with phase("testing derivatives, labels and layers"):
        return _checked(made, network, images, classes, mode, seed)


def _checked(made: Model, network: nn.Module, images: Tensor, classes: int, mode: str, seed: int) -> ModelCheck:
    image_shape = tuple(images.shape[1:])
    outputs = check_network(network, images, classes, Plan(batch_size=2, mode=mode), masks=True)  # type: ignore[arg-type]  (Plan checks it)
    plan = Plan(batch_size=_fewest(network, images, mode), mode=mode)  # type: ignore[arg-type]  (Plan checks it)
    scene = Scene(network, image_shape, outputs, plan, seed, label_shape_of(network, images, plan))
    derivatives = _derivatives(scene)
    with explained(ONCE):
        return ModelCheck(
            model=repr(made),
            image_shape=image_shape,
            outputs=outputs,
            mode=mode,
            fewest=plan.batch_size,
            facts=facts_of(network, images),
            labels={str(n): labels_told(scene, n) for n in (plan.batch_size, _BATCH)},
            linear=linear_inputs(scene),
            statistics=statistics_told(scene),
            derivatives=derivatives,
            attacks=_attacks(scene, derivatives["twice"]),
            capacity={mode: _capacity(network, image_shape, mode) for mode in ("train", "eval")},
            seconds=_seconds(scene, derivatives),
        )


def _fewest(network: nn.Module, images: Tensor, mode: str) -> int:
    try:
        check_network(network, images[:1], 2, Plan(mode=mode), masks=True)  # type: ignore[arg-type]  (Plan checks it)
    except InputError:
        return 2
    return 1


def _derivatives(scene: Scene) -> dict[str, str]:
    """Return ``""`` or the problem for each derivative; raise `InputError` if the update cannot be computed at all."""
    found = {"twice": "", "together": "", "wrong": ""}
    for what, together in (("twice", False), ("together", True)):
        try:
            wrong = check_derivatives(
                scene.network, scene.images(scene.plan.batch_size), scene.outputs, scene.plan, together
            )
            found["wrong"] = wrong or ""
        except InputError as error:
            if str(error).startswith(ONCE):
                raise
            found[what] = str(error)
    return found


def _attacks(scene: Scene, undifferentiable: str) -> dict[str, str]:
    """Try every registered attack for a few steps, and return why it does not apply, or ``""``."""
    if undifferentiable:
        return dict.fromkeys(registry(attack_package), undifferentiable)
    seen = scene.seen(torch.zeros(1, scene.plan.batch_size, dtype=torch.long))
    steps = 8 if stacks(Weights.of(scene.network)) else 2
    found = {}
    for name, member in registry(attack_package).items():
        try:
            with explained("it failed"), phase(f"trying {name}"):
                member().check(seen.model, (scene.plan,), scene.shape)
                if not member.members:  # an ensemble's members are tried themselves
                    shortened_names(member(), steps)(seen, generator_of(scene.seed, name))
            found[name] = ""
        except InputError as error:
            found[name] = str(error)
    return found


def _capacity(network: nn.Module, image_shape: tuple[int, ...], mode: Literal["train", "eval"]) -> dict[str, Any]:
    """Count how far `Separation` can read batches of several sizes."""
    try:
        with explained("the model's operations cannot be counted"), phase(f"counting equations in {mode} mode"):
            graph = traced_graph(network, image_shape, mode)
            return {"why": "", "batches": [asdict(capacity_of(graph, images, mode)) for images in _BATCHES]}
    except InputError as error:
        return {"why": " ".join(str(error).split()), "batches": []}


def shortened_names(attack: Attack, steps: int) -> Attack:
    """Return the attack with fewer steps and one restart, or with the smallest budget, if it has these settings."""
    own = {field.name for field in fields(attack)}  # type: ignore[arg-type]  (attacks are dataclasses)
    short = {"steps": steps, "restarts": 1} if "steps" in own else {"evaluations": LEAST}
    return replace(attack, **{k: v for k, v in short.items() if k in own})  # type: ignore[type-var]  (so are they)


def _seconds(scene: Scene, derivatives: dict[str, str]) -> dict[str, float | bool | None]:
    plan, weights = scene.plan, Weights.of(scene.network)
    x, ready = scene.images(plan.batch_size), prepare(scene.network, plan)
    label = scene.labels(torch.zeros(len(x), dtype=torch.long))

    def update(images: Tensor) -> dict[str, Tensor]:
        return dict(local_update(ready, Batch(images, label), plan, weights).tensors)

    along = update(x)

    def part(images: Tensor) -> Tensor:
        return torch.stack([(t * along[name]).sum() for name, t in update(images).items()]).sum()

    stack, together = torch.stack([x] * _TOGETHER), None
    with torch.no_grad(), differentiable_kernels(), phase("timing the model"):
        forward, gradient = _time(lambda: ready(x)), _time(lambda: update(x))
        second = None if derivatives["twice"] else _time(lambda: grad(part)(x))
        if second is not None and not derivatives["together"]:
            together = _time(lambda: vmap(grad(part))(stack)) / _TOGETHER
    times = {"forward": forward, "gradient": gradient, "second": second, "together": together}
    return {**times, "audits_together": stacks(weights)}


def _time(work: Callable[[], Any]) -> float:
    """Return the median time of three runs, after one warm-up run."""
    work()
    spent = []
    for _ in range(3):
        started = time.perf_counter()
        work()
        spent.append(time.perf_counter() - started)
    return median(spent)
