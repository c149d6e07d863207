"""A search for images by the values in a network's first layers, without second derivatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.fx import Node

from medpfl.attacks.deep.graph import Graph
from medpfl.attacks.optimize.coordinates import Basis
from medpfl.attacks.optimize.optimizer import Problem

__all__ = ["Band", "Front"]

_SMOOTH = 1e-6
"""Squared pixel difference below which the total variation is smooth."""


@dataclass(frozen=True)
class Band:
    """The part of the coordinates that a search may use.

    Attributes:
        highest: highest frequency, in half periods per image; ``None``: all.
        gray: True to keep all channels equal, for a cosine transform over channels.
        variation: weight for the total variation, relative to the batch's contrast.
    """

    highest: float | None = None
    gray: bool = False
    variation: float = 0.0

    def mask(self, shape: torch.Size, like: Tensor) -> Tensor:
        """Return 1 for each coordinate (C, ...) that may be used, and 0 for the others."""
        grids = torch.meshgrid(*(torch.arange(edge) for edge in shape[1:]), indexing="ij")
        frequency = torch.stack(grids).double().square().sum(0).sqrt()
        kept = torch.ones(*shape, dtype=torch.bool)
        if self.highest is not None:
            kept &= frequency < self.highest
        if self.gray:
            kept[1:] = False
        return kept.to(like)


class Front(Problem):
    """The squared distance between some nodes' values and the recovered ones, relative to their size.

    Where values passed a ReLU, its inputs are compared: zeros only require inputs at or below zero, and a guess has a
    slope even where its ReLU is off and the image's is on.

    Args:
        graph: the model's graph, for N images.
        targets: recovered values (V, N, ...) by node.
        basis: coordinates for the images (N, C, H, W).
        band: coordinates to use.
    """

    def __init__(self, graph: Graph, targets: dict[Node, Tensor], basis: Basis, band: Band | None = None) -> None:
        self.graph, self.targets, self.basis, self.band = graph, targets, basis, band or Band()
        like = next(iter(targets.values()))
        self.fixed = {k: _as(value, like) for k, value in graph.fixed.items()}
        self.order = graph.needed(targets)
        self.rectifiers = {k: node for k in targets if (node := graph.rectifier(k))}
        self.sizes = {k: t.flatten(1).square().sum(1).clamp(min=1e-30) for k, t in targets.items()}
        self.mask = self.band.mask(graph.shapes[graph.image][1:], like)

    def evaluate(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return distances (A,) and their gradients (A, D), both with the total variation."""
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            images = self.images(z)
            loss = torch.stack([self._distance(k, made, rows) for k, made in self._made(images).items()]).sum(0)
            if self.band.variation:
                loss = loss + self.band.variation * _variation(images)
            (slope,) = torch.autograd.grad(loss.sum(), z)
        return loss.detach(), slope

    def project(self, z: Tensor, step: int) -> Tensor:
        """Return the variables unchanged: there is no constraint."""
        return z

    def images(self, z: Tensor) -> Tensor:
        """Convert variables (A, D) to images (A, N, C, H, W)."""
        shape = self.graph.shapes[self.graph.image]
        return self.basis.images(z.view(-1, *shape) * self.mask, len(shape) - 1)

    def variables(self, images: Tensor) -> Tensor:
        """Return the variables (A, D)."""
        return self.basis.coordinates(images, images.ndim - 2).flatten(1)

    def _made(self, images: Tensor) -> dict[Node, Tensor]:
        def one(image: Tensor) -> dict[Node, Tensor]:
            values = self.graph.run(image, self.order, self.fixed)
            return {node: self._opened(node, values) for node in self.targets}

        if len(images) == 1:
            return {node: value[None] for node, value in one(images[0]).items()}
        return vmap(one)(images)

    def _opened(self, node: Node, values: dict[Node, Any]) -> Any:
        """Return a node's value as if the ReLU before it, directly or before maxima, had passed everything."""
        rectifier = self.graph.rectifier(node)
        if rectifier is None:
            return values[node]
        (source,) = self.graph.sources(node)
        return values[source] if node is rectifier else self.graph.call(node, {source: self._opened(source, values)})

    def _distance(self, node: Node, made: Tensor, rows: Tensor) -> Tensor:
        target = self.targets[node][rows]
        rest = made - target
        if node in self.rectifiers:
            rest = torch.where(target > 0, rest, made.clamp(min=0))
        return rest.flatten(1).square().sum(1) / self.sizes[node][rows]


def _variation(images: Tensor) -> Tensor:
    """Return each batch's total variation (A,), relative to its contrast."""
    right, down = images[..., :-1, 1:] - images[..., :-1, :-1], images[..., 1:, :-1] - images[..., :-1, :-1]
    total = (right.square() + down.square() + _SMOOTH).sqrt().flatten(1).mean(1)
    return total / images.flatten(1).std(1).clamp(min=1e-12)


def _as(value: Any, like: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(like) if value.is_floating_point() else value.to(like.device)
