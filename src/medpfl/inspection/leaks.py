"""Leaks that a model's update has without any search, measured on random images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medpfl.attacks.matching.labels import LastLayer, last_layer
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.roles import NO_DEFENSE
from medpfl.core.threat import ThreatModel
from medpfl.core.types import Batch, Observation, Weights
from medpfl.federated.client import client_round
from medpfl.federated.local import local_update
from medpfl.federated.ready import prepare
from medpfl.federated.server import observe
from medpfl.runs.environment import generator_of

__all__ = ["Scene", "labels_told", "linear_inputs", "statistics_told"]

_EXACT = 1e-3
_SAME = 0.999


@dataclass(frozen=True, eq=False)
class Scene:
    """A model, and random images to compute its updates from.

    Attributes:
        network: the model with its weights.
        shape: image shape, (C, H, W) or (C, D, H, W).
        outputs: number of outputs K.
        plan: the client's plan.
        seed: seed for the images.
        label_shape: shape of an image's label: () for a class, (H, W) or (D, H, W) for a mask.
    """

    network: nn.Module
    shape: tuple[int, ...]
    outputs: int
    plan: Plan
    seed: int = 0
    label_shape: tuple[int, ...] = ()

    def images(self, count: int) -> Tensor:
        """Return random images (count, C, H, W), uniform in [0, 1]."""
        return torch.rand(count, *self.shape, generator=generator_of(self.seed, "images", count))

    def labels(self, classes: Tensor) -> Tensor:
        """Return classes (...) as labels: unchanged, or as masks that hold one class each."""
        spread = classes.view(*classes.shape, *[1] * len(self.label_shape))
        return spread.expand(*classes.shape, *self.label_shape)

    def seen(self, labels: Tensor, plan: Plan | None = None) -> Observation:
        """Return the server's observation of V clients whose images have the classes (V, N)."""
        plan, weights = plan or self.plan, Weights.of(self.network)
        client, server = (prepare(self.network, plan) for _ in range(2))
        images = self.images(labels.numel()).unflatten(0, tuple(labels.shape))
        generator = generator_of(self.seed, "clients")
        rounds = [
            client_round(client, weights, Batch(x, self.labels(y)), plan, NO_DEFENSE, {}, generator)
            for x, y in zip(images, labels, strict=True)
        ]
        told: dict[str, Any] = {"image_shape": self.shape, "num_classes": self.outputs, "label_shape": self.label_shape}
        return observe(server, weights, plan, rounds, ThreatModel(), defense=NO_DEFENSE, **told)


def labels_told(scene: Scene, images: int, most: int = 8) -> dict[str, Any]:
    """Count the labels that the last layer's gradient reveals, for single images or for batches.

    Args:
        scene: the model.
        images: images per update N.
        most: maximum number of updates with one image each; batches use two updates.

    Returns:
        ``layer``: name of the last layer's weight; ``bias``: True if it has a bias; ``right``: labels recovered, out
        of ``all``. If no label can be recovered, only ``why``.
    """
    if scene.label_shape:
        return {"why": "masks, which no gradient shows at once; attacks optimize them with the images"}
    plan = Plan(batch_size=images, mode=scene.plan.mode)
    victims = min(scene.outputs, most) if images == 1 else 2
    truth = torch.arange(victims * images).view(victims, images) % scene.outputs
    seen = scene.seen(truth, plan)
    weight, bias = last_layer(seen)
    try:
        found = LastLayer().infer(seen, scene.images(images))
    except InputError as error:
        return {"why": str(error)}
    assert found is not None
    right = sum(_common(row.tolist(), own.tolist()) for row, own in zip(found, truth, strict=True))
    return {"layer": weight, "bias": bias is not None, "right": right, "all": truth.numel()}


def _common(some: list[int], others: list[int]) -> int:
    """Count the labels that two batches have in common, in any order."""
    left = list(others)
    for one in some:
        if one in left:
            left.remove(one)
    return len(others) - len(left)


def linear_inputs(scene: Scene) -> list[dict[str, Any]]:
    """Find out what each linear layer's gradient reveals about its input, for the smallest batch that the model takes.

    A row of the weight's gradient is the input times a factor, and the bias's gradient is that factor (Geiping et
    al. 2020, arXiv:2003.14053, Proposition 3.1). With several inputs, such as tokens, it is a sum.

    Returns:
        For each trained layer: ``layer``, ``inputs`` and ``pixels``; ``read``: ``"exactly"`` from weight and bias,
        ``"up to a factor"`` without a bias, ``"as a sum"`` for several inputs, or ``"not"`` if the measurement shows
        otherwise (for example, no row has a gradient); ``pixels_themselves``: True if the input is the image, possibly
        normalized.
    """
    plan, x = scene.plan, scene.images(scene.plan.batch_size)
    ready = prepare(scene.network, plan)
    entered = _entered(ready, x)
    labels = scene.labels(torch.zeros(len(x), dtype=torch.long))
    update = local_update(ready, Batch(x, labels), plan, Weights.of(scene.network)).tensors
    found = []
    for name, inputs in entered.items():
        weight, bias = update.get(f"{name}.weight"), update.get(f"{name}.bias")
        if weight is None or not weight.any():  # frozen, or unused
            continue
        told = {"layer": name, "inputs": weight.shape[1], "pixels": x[0].numel()}
        read = _read(weight, bias, inputs)
        found.append({**told, "read": read, "pixels_themselves": read != "as a sum" and _is_image(inputs, x)})
    return found


def _entered(ready: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return each linear layer's inputs (rows, inputs), in the order in which the layers are used."""
    seen: dict[str, list[Tensor]] = {}
    handles = []
    for name, layer in ready.named_modules():
        if isinstance(layer, nn.Linear):

            def hook(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                seen.setdefault(name, []).append(inputs[0].flatten(0, -2))

            handles.append(layer.register_forward_pre_hook(hook))
    try:
        with torch.no_grad():
            ready(x)
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(own) for name, own in seen.items()}


def _read(weight: Tensor, bias: Tensor | None, inputs: Tensor) -> str:
    if len(inputs) > 1:
        return "as a sum"
    row = int((weight.norm(dim=1) if bias is None else bias.abs()).argmax())
    if bias is None:
        alike = torch.cosine_similarity(weight[row], inputs[0], 0).abs()
        return "up to a factor" if alike > _SAME else "not"
    guess = weight[row] / bias[row]
    return "exactly" if (guess - inputs[0]).norm() <= _EXACT * inputs[0].norm() else "not"


def _is_image(inputs: Tensor, x: Tensor) -> bool:
    if inputs.shape[1] != x.numel():
        return False
    pair = torch.stack([inputs[0], x.flatten()])
    return bool(torch.corrcoef(pair)[0, 1].abs() > _SAME)


def statistics_told(scene: Scene) -> dict[str, Any]:
    """Return the number of batch-norm statistics, and whether they are sent and depend on the images."""
    layers = [m for m in scene.network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    moved = scene.plan.mode == "train" and "buffers" in scene.plan.sends
    return {"layers": len(layers), "numbers": sum(2 * m.num_features for m in layers), "sent": bool(layers) and moved}
