"""A search for images by the values in a network's first layers, without second derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.fx import Node

from medpfl.attacks.inversion.graph import Graph
from medpfl.attacks.optimize.coordinates import Basis
from medpfl.attacks.optimize.optimizer import Problem

__all__ = ["Front"]


class Front(Problem):
    """The squared distance between some nodes' values and the recovered ones, relative to their size.

    Where values passed a ReLU, its inputs are compared: zeros only require inputs at or below zero, and a guess has a
    slope even where its ReLU is off and the image's is on.

    Args:
        graph: the model's graph.
        targets: recovered values (V, 1, ...) by node.
        basis: coordinates for the images (1, C, H, W).
    """

    def __init__(self, graph: Graph, targets: dict[Node, Tensor], basis: Basis) -> None:
        self.graph, self.targets, self.basis = graph, targets, basis
        like = next(iter(targets.values()))
        self.fixed = {k: _as(value, like) for k, value in graph.fixed.items()}
        self.order = graph.needed(targets)
        self.rectifiers = {k: node for k in targets if (node := graph.rectifier(k))}
        self.sizes = {k: t.flatten(1).square().sum(1).clamp(min=1e-30) for k, t in targets.items()}

    def evaluate(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return distances (A,) and their gradients (A, D)."""
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            loss = torch.stack([self._distance(k, made, rows) for k, made in self._made(z).items()]).sum(0)
            (slope,) = torch.autograd.grad(loss.sum(), z)
        return loss.detach(), slope

    def project(self, z: Tensor, step: int) -> Tensor:
        """Return the variables unchanged: there is no constraint."""
        return z

    def images(self, z: Tensor) -> Tensor:
        """Convert variables (A, D) to images (A, 1, C, H, W), one for each row."""
        shape = self.graph.shapes[self.graph.image]
        return self.basis.images(z.view(-1, *shape), len(shape) - 1)

    def variables(self, images: Tensor) -> Tensor:
        """Return the variables (A, D)."""
        return self.basis.coordinates(images, images.ndim - 2).flatten(1)

    def _made(self, z: Tensor) -> dict[Node, Tensor]:
        def one(image: Tensor) -> dict[Node, Tensor]:
            values = self.graph.run(image, self.order, self.fixed, self.rectifiers.values())
            return {node: values[node] for node in self.targets}

        return vmap(one)(self.images(z))

    def _distance(self, node: Node, made: Tensor, rows: Tensor) -> Tensor:
        target = self.targets[node][rows]
        rest = made - target
        if node in self.rectifiers:
            rest = torch.where(target > 0, rest, made.clamp(min=0))
        return rest.flatten(1).square().sum(1) / self.sizes[node][rows]


def _as(value: Any, like: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(like) if value.is_floating_point() else value.to(like.device)
