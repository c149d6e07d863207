"""The inputs of a late convolution for every image of an update: where the walk through a batch begins.

On a map of 2 x 2 positions, each corner weight of a 3 x 3 kernel meets one position of each image. `separate` reads the
inputs there, up to their order and one factor per image and position. The other weights meet several positions, so
they link the corners. One factor per image remains. In eval mode, it follows from the gradient of the convolution's own
bias or of the batch norm's: the derivatives' sum. In train mode, this sum is zero, which gives the factors up to a
common one. The last layer's gradient gives that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.fx import Node
from torch.nn import functional

from medpfl.attacks.deep.graph import Graph
from medpfl.attacks.deep.kernel_systems import flattened, geometry_of, inputs, places, unflattened
from medpfl.attacks.deep.sources import Sources, separate
from medpfl.attacks.deep.walk_state import Start
from medpfl.core.errors import InputError
from medpfl.core.types import Tensors

__all__ = ["Entrance", "SeparatedStart", "entrances", "separated_start"]

_OPS = torch.ops.aten

_MAPS = {(2, 2), (1, 1)}
"""Maps on which a kernel weight meets a single position."""

_LINKED = 0.99
"""Smallest cosine between two readings of the same input."""

_DEAD = 1e-5
"""Values below this share of an image's largest are a ReLU's zeros."""

_SIZES, _POINTS = (-4.0, 8.0), 121
"""Range of a size's logarithm, and the number of points at which it is tried first."""


class Entrance(NamedTuple):
    """A convolution whose inputs `separate` can read.

    Attributes:
        node: the inputs: outputs of a ReLU through which the image reaches the output, and no other way.
        convolution: the convolution.
        name: the parameter name of its kernel.
        where: (K, L) input position of each kernel weight at each output position of one image; D for padding.
    """

    node: Node
    convolution: Node
    name: str
    where: Tensor

    @property
    def positions(self) -> int:
        """D, the number of positions of one image."""
        return int(self.where.max())

    def pairs(self, weight: int) -> list[tuple[int, int]]:
        """Return the output and input positions that a kernel weight joins."""
        return [(place, int(own)) for place, own in enumerate(self.where[weight]) if own < self.positions]


@dataclass(frozen=True, eq=False)
class SeparatedStart:
    """A start for a walk, with the certificates of its sources.

    Attributes:
        entrance: where the inputs were read.
        start: where the walk begins.
        sources: certified sources by kernel weight.
    """

    entrance: Entrance
    start: Start
    sources: tuple[Sources, ...]


def entrances(graph: Graph) -> Iterator[Entrance]:
    """Yield the convolutions over 2 x 2 positions, or one, whose inputs `separate` can read, the last one first."""
    for node in graph.passages():
        shape = graph.shapes.get(node)
        if graph.rectifier(node) is None or shape is None or len(shape) != 4 or tuple(shape[2:]) not in _MAPS:
            continue
        for user in node.users:
            if user.target is not _OPS.convolution.default or user.args[6] or user.args[8] != 1:
                continue
            kernel = user.args[1]
            if not isinstance(kernel, Node) or kernel not in graph.parameters or len(kernel.users) > 1:
                continue
            edges = tuple(graph.fixed[kernel].shape[2:])
            where = places(tuple(shape[2:]), edges, geometry_of(user))
            normal = graph.batch_norm(user)
            if normal is not None and normal.args[5] and prod(shape[2:]) == 1:
                continue  # derivatives sum to zero over the images: the gradient holds only differences of inputs
            if where.shape[1] == prod(shape[2:]) and edges == (3, 3):
                yield Entrance(node, user, graph.parameters[kernel], where)


def separated_start(graph: Graph, gradients: Tensors) -> SeparatedStart:
    """Return a start from the last convolution at which all images of the update were separated.

    Args:
        graph: the model's graph, for as many images as are in the update.
        gradients: the parameters' gradients, in float64 on the CPU.

    Raises:
        InputError: No convolution allows it. The message gives the reason for each.
    """
    reasons = []
    for entrance in entrances(graph):
        try:
            return _Reading(graph, gradients, entrance).start()
        except InputError as error:
            reasons.append(f"layer '{entrance.name.rpartition('.')[0]}': {error}")
    if not reasons:
        raise InputError("no 3 x 3 convolution of the model has rectified inputs on a map of 2 x 2 positions")
    raise InputError("; ".join(reasons))


class _Reading:
    """The reading of one entrance."""

    def __init__(self, graph: Graph, gradients: Tensors, entrance: Entrance) -> None:
        self.graph, self.gradients, self.entrance = graph, gradients, entrance
        self.sent = gradients[entrance.name].flatten(2)
        self.images = graph.shapes[entrance.node][0]

    def start(self) -> SeparatedStart:
        """Return the start; raise `InputError` if the images were not separated."""
        delta, sources = self._derivatives()
        bias = self._bias()
        factors = self._balanced(delta) if bias is None else self._summed(delta, bias)
        if not (factors > 0).all():
            raise InputError("the factors between its images are not all positive")
        value = self._inputs(delta * factors[:, None, None])
        if bias is None:
            value = value / value.square().mean().sqrt()
            value = value * _least(lambda size: self._logits(value * size)[1])
        pull, residual = self._logits(value)
        if not residual < 0.1:
            raise InputError(f"the last layer's gradient does not fit its inputs (residual {residual:.2g})")
        return SeparatedStart(self.entrance, Start(self.entrance.node, value, pull), sources)

    def _derivatives(self) -> tuple[Tensor, tuple[Sources, ...]]:
        """Return the derivative (N, O, L) by the convolution's outputs, up to one factor per image."""
        count = self.entrance.positions
        alone = {k: pairs[0] for k in range(len(self.entrance.where)) if len(pairs := self.entrance.pairs(k)) == 1}
        found = {k: separate(self.sent[:, :, k]) for k in alone}
        for k, one in found.items():
            if not one.complete or len(one.inputs) != self.images:
                raise InputError(
                    f"{len(one.inputs)} of {one.rank} sources were certified at kernel weight {k + 1}, for "
                    f"{self.images} images"
                )
        rows = {own: found[k].inputs for k, (_, own) in alone.items()}
        deltas = {out: self.sent[:, :, k] @ torch.linalg.pinv(rows[own]) for k, (out, own) in alone.items()}
        input_of = dict(alone.values())
        linked, open_ = {next(iter(input_of))}, [next(iter(input_of))]
        while open_:
            known = open_.pop()
            for out in self._neighbors(known, input_of, linked, deltas, rows):
                linked.add(out)
                open_.append(out)
        if len(linked) < count:
            raise InputError("its positions could not be linked")
        return torch.stack([deltas[out].T for out in range(count)], -1), tuple(found.values())

    def _neighbors(
        self, known: int, input_of: dict[int, int], linked: set[int], deltas: dict[int, Tensor], rows: dict[int, Tensor]
    ) -> Iterator[int]:
        """Order and scale the sources at positions whose derivatives tell a linked position's input; yield them."""
        for k in range(len(self.entrance.where)):
            pairs = self.entrance.pairs(k)
            outs = [out for out, _ in pairs]
            if len(pairs) != 2:
                continue
            system = torch.linalg.pinv(torch.cat([deltas[out] for out in outs], 1)) @ self.sent[:, :, k]
            for (out, own), told in zip(pairs, system.split(self.images), strict=True):
                other = next(o for o, i in input_of.items() if i == own)
                # the derivative at `out` tells the input at `own`, whose own derivative stands at `other`
                if out in linked or other != known:
                    continue
                alike = functional.normalize(told, dim=1) @ functional.normalize(rows[own], dim=1).T
                order = alike.argmax(0)
                if len(set(order.tolist())) < self.images or alike.amax(0).min() < _LINKED:
                    raise InputError("its positions could not be linked")
                factor = (told[order] * rows[own]).sum(1) / rows[own].square().sum(1)
                deltas[out] = deltas[out][:, order] * factor
                rows[input_of[out]] = rows[input_of[out]][order] / factor[:, None]
                yield out

    def _bias(self) -> Tensor | None:
        """Return the sum (O,) of the convolution's derivatives over images and positions; ``None`` in train mode."""
        convolution = self.entrance.convolution
        normal = self.graph.batch_norm(convolution)
        if normal is not None and normal.args[5]:
            return None
        own, beta = self._sent(convolution, 2), None if normal is None else self._sent(normal, 2)
        if own is not None:
            return own
        if normal is None or beta is None:
            raise InputError("no bias follows it, whose gradient would show its images' factors")
        zero = torch.zeros(1, len(beta), 1, 1).to(beta)
        low, high = (self.graph.call(normal, {convolution: zero + one})[0].flatten() for one in (0, 1))
        return beta * (high - low)

    def _sent(self, node: Node, place: int) -> Tensor | None:
        """Return the gradient of the parameter at an argument of a node; ``None`` without one."""
        name = self.graph.parameter(node, place)
        return None if name is None else self.gradients.get(name)

    def _balanced(self, delta: Tensor) -> Tensor:
        """Return factors (N,) with which the derivatives sum to zero over the batch, as behind a batch norm."""
        factors = torch.linalg.svd(delta.sum(2).T, full_matrices=False)[2][-1]
        return factors * factors.sum().sign()

    def _summed(self, delta: Tensor, bias: Tensor) -> Tensor:
        """Return factors (N,) with which the derivatives sum to a given vector (O,)."""
        return torch.linalg.lstsq(delta.sum(2).T, bias[:, None]).solution[:, 0]

    def _inputs(self, delta: Tensor) -> Tensor:
        """Return the inputs (N, C, H, W) by least squares over the whole kernel."""
        shape, kernel = self.graph.shapes[self.entrance.node], self.gradients[self.entrance.name].shape[2:]
        where = places(tuple(shape[2:]), tuple(kernel), geometry_of(self.entrance.convolution), self.images)
        found = inputs(flattened(delta), self.sent, where, self.images * self.entrance.positions)
        if found is None:
            raise InputError("its gradient does not determine all of its inputs")
        value = unflattened(found.value, shape)
        return torch.where(value > _DEAD * value.amax((1, 2, 3), keepdim=True), value, 0.0)

    def _logits(self, value: Tensor) -> tuple[Tensor, float]:
        """Return the derivative (N, K) by the logits that fits the last layer's gradient best, and its misfit."""
        output = self.graph.output
        features = self.graph.after({self.entrance.node: value})[self.graph.sources(output)[0]]
        sent = self._last_layer()
        pull = torch.linalg.lstsq(features.T, sent.T).solution
        return pull, float((features.T @ pull - sent.T).norm() / sent.norm())

    def _last_layer(self) -> Tensor:
        """Return the gradient (K, F) of the last layer's weight."""
        output = self.graph.output
        sent = self._sent(output, 2) if output.target is _OPS.addmm.default else None
        if sent is None:
            raise InputError("the model does not end in a linear layer")
        return sent


def _least(misfit: Callable[[float], float]) -> float:
    """Return the factor, between the exponentials of `_SIZES`, for which a misfit is least."""
    points = np.linspace(*_SIZES, _POINTS)
    best = int(np.argmin([misfit(float(np.exp(point))) for point in points]))
    low, high = points[max(best - 1, 0)], points[min(best + 1, _POINTS - 1)]
    found = minimize_scalar(
        lambda t: misfit(float(np.exp(t))), bounds=(low, high), method="bounded", options={"xatol": 1e-12}
    )
    return float(np.exp(found.x))
