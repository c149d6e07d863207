"""The inputs of a late layer for every image of an update: where the walk through a batch begins.

A linear layer's gradient is a sum of one outer product per image. On a map of 2 x 2 positions, so is that of each
corner weight of a 3 x 3 kernel, which meets one position of each image. At one corner, `separate` reads the inputs, up
to their order and one factor per image. The weights between two corners meet two positions, and give the inputs at the
others, in the same order. One factor per image remains. Without batch norm in train mode, it follows from the gradient
of the layer's own bias or of the batch norm's: the derivatives' sum. In train mode, this sum is zero, which gives the
factors up to a common one. The last layer's gradient gives that.

An update may sum the gradients of several batches: local steps, or clients under secure aggregation. In train mode, the
derivatives of each batch sum to zero, so the null space of the derivatives shows which images shared a batch.

At a linear layer before the last ReLU, `separate_states` reads the inputs with their factors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from torch import Tensor
from torch.func import vjp
from torch.fx import Node
from torch.nn import functional

from medpfl.attacks.deep.entrances import MOVED, NO_ENTRANCE, NO_FACTORS, Entrance, entrances
from medpfl.attacks.deep.graph import Graph, layer_name
from medpfl.attacks.deep.kernel_systems import LAYERS, by_channel, by_image, inputs, kernels, places_of
from medpfl.attacks.deep.sources import Sources, separate
from medpfl.attacks.deep.switches import Head, States, separate_states
from medpfl.attacks.deep.walk_state import Start
from medpfl.core.errors import InputError
from medpfl.core.types import Tensors

__all__ = ["SeparatedStart", "separated_start"]

_OPS = torch.ops.aten

_LINKED = 0.99
"""Smallest cosine between inputs and their positive part at positions that were linked."""

_FITS, _MOVED = 0.1, 0.5
"""Misfit of the last layer's gradient from which on it does not fit: at the same weights, and at others."""

_BALANCED = 1e-3
"""Relative size of a sum of derivatives that is zero but for noise."""

_GAP = 10.0
"""Smallest ratio between the least sums that are no null vectors and those that are, for several batches."""

_JOINED = 0.5
"""Entry of the null space's normalized projection above which two images shared a batch; without errors 1 or 0."""

_DEAD = 1e-5
"""Values below this share of an image's largest are a ReLU's zeros."""

_SIZES, _POINTS = (-4.0, 8.0), 121
"""Range of a size's logarithm, and the number of points at which it is tried first."""


@dataclass(frozen=True, eq=False)
class SeparatedStart:
    """A start for a walk, with the certificates of its sources.

    Attributes:
        entrance: where the inputs were read.
        starts: where the walk begins, one for each batch of the update.
        sources: certified sources at one kernel weight, or images certified by their states.
        residual: relative misfit of the last layer's gradient.
    """

    entrance: Entrance
    starts: tuple[Start, ...]
    sources: Sources | States
    residual: float

    @property
    def start(self) -> Start:
        """The start for the first batch."""
        return self.starts[0]


def separated_start(graph: Graph, gradients: Tensors, batches: int = 1, moved: bool = False) -> SeparatedStart:
    """Return a start from the last layer at which all images of the update were separated.

    Args:
        graph: the model's graph, for the images of one batch.
        gradients: the parameters' gradients, in float64 on the CPU; for several batches, their sum.
        batches: number of batches in the update. With more than one, all batch norms must be in train mode.
        moved: True if some gradients were taken at other weights, after local steps. The logits' derivative is then
            approximate.

    Raises:
        InputError: No layer allows it. The message gives the reason for each.
    """
    reasons = []
    for entrance in entrances(graph):
        kind = _Reading if entrance.switch is None else _SwitchedReading
        try:
            return kind(graph, gradients, entrance, batches).start(_MOVED if moved else _FITS)
        except InputError as error:
            reasons.append(f"layer '{layer_name(entrance.name)}': {error}")
    if not reasons:
        raise InputError(NO_ENTRANCE)
    raise InputError("; ".join(dict.fromkeys(reasons)))


class _Reading:
    """The reading of one entrance."""

    def __init__(self, graph: Graph, gradients: Tensors, entrance: Entrance, batches: int) -> None:
        self.graph, self.gradients, self.entrance, self.batches = graph, gradients, entrance, batches
        self.sent = kernels(gradients[entrance.name])
        self.batch = graph.shapes[entrance.node][0]
        self.images = batches * self.batch

    def start(self, misfit: float) -> SeparatedStart:
        """Return the start; raise `InputError` if the images were not separated.

        Args:
            misfit: smallest relative misfit of the last layer's gradient at which it does not fit.
        """
        delta, sources = self._derivatives()
        bias = self._bias()
        if bias is None:
            order, factors = self._balanced(delta)
            delta = delta[order]
        elif self.batches > 1:
            raise InputError("no batch norm in train mode follows it, which would show the images of each batch")
        else:
            factors = self._summed(delta, bias)
        if not (factors > 0).all():
            raise InputError("the factors between its images are not all positive")
        value = self._inputs(delta * factors[:, None, None]).split(self.batch)
        if bias is None:
            value = [part / part.square().mean().sqrt() for part in value]
            size = _least(lambda size: self._logits([part * size for part in value])[1])
            value = [part * size for part in value]
        pulls, residual = self._logits(value)
        if not residual < misfit:
            raise InputError(f"the last layer's gradient does not fit its inputs (residual {residual:.2g})")
        pairs = zip(value, pulls.split(self.batch), strict=True)
        starts = tuple(Start(self.entrance.node, part, pull) for part, pull in pairs)
        return SeparatedStart(self.entrance, starts, sources, residual)

    def _derivatives(self) -> tuple[Tensor, Sources]:
        """Return the derivative (N, O, L) by the layer's outputs, up to one factor per image, and the sources."""
        pairs = [self.entrance.pairs(k) for k in range(len(self.entrance.where))]
        alone = {own[0]: k for k, own in enumerate(pairs) if len(own) == 1}
        (out, own), sources = self._separated(alone)
        values = {own: sources.inputs}
        deltas = {out: self.sent[:, :, alone[out, own]] @ torch.linalg.pinv(sources.inputs)}
        open_ = [(out, own)]
        while open_:
            near = open_.pop()
            for k, (out, own) in _neighbors(near, pairs, alone):
                if out not in deltas:
                    deltas[out] = self._linked(deltas[near[0]], values[near[1]], k, alone[out, own])
                    values[own] = torch.linalg.pinv(deltas[out]) @ self.sent[:, :, alone[out, own]]
                    if not _rectified(values[own]):
                        raise InputError("its positions could not be linked")
                    open_.append((out, own))
        if len(deltas) < self.entrance.positions:
            raise InputError("its positions could not be linked")
        return torch.stack([deltas[out].T for out in range(self.entrance.positions)], -1), sources

    def _separated(self, alone: dict[tuple[int, int], int]) -> tuple[tuple[int, int], Sources]:
        """Return the first pair of positions at whose kernel weight all images were separated, and its sources."""
        reasons = []
        for pair, k in alone.items():
            found = separate(self.sent[:, :, k])
            if found.complete and len(found.inputs) == self.images:
                return pair, found
            reasons.append((len(found.inputs), found.rank))
        certified, rank = max(reasons)
        raise InputError(f"{certified} of {rank} sources were certified, for {self.images} images")

    def _linked(self, delta: Tensor, values: Tensor, between: int, corner: int) -> Tensor:
        """Return the derivative (O, N) at a neighboring output position, for the same images in the same order.

        The weight between two corners has the gradient ``D' X + D X'``, with the known D and X of one corner. The other
        corner's is ``D' X'``, which gives the columns of D' up to an N x N matrix. That follows outside the span of D.

        Args:
            delta: (O, N) the derivative D at one output position.
            values: (N, C) the inputs X that belong to it.
            between: kernel weight that joins both corners.
            corner: kernel weight of the other corner.
        """
        span = torch.linalg.qr(delta)[0]
        basis = torch.linalg.svd(self.sent[:, :, corner], full_matrices=False)[0][:, : self.images]
        outside, rest = (part - span @ (span.T @ part) for part in (basis, self.sent[:, :, between]))
        return basis @ (torch.linalg.pinv(outside) @ rest @ torch.linalg.pinv(values))

    def _bias(self) -> Tensor | None:
        """Return the sum (O,) of the layer's derivatives over images and positions; ``None`` in train mode."""
        layer = self.entrance.layer
        normal = self.graph.batch_norm(layer)
        if normal is not None and normal.args[5]:
            return None
        own, beta = self._sent(layer, LAYERS[layer.target].bias), None if normal is None else self._sent(normal, 2)
        if own is not None:
            return own
        if normal is None or beta is None:
            raise InputError(NO_FACTORS)
        zero = beta.new_zeros(1, len(beta), *[1] * (len(self.graph.shapes[layer]) - 2))
        low, high = (self.graph.call(normal, {layer: zero + one})[0].flatten() for one in (0, 1))
        return beta * (high - low)

    def _sent(self, node: Node, place: int) -> Tensor | None:
        """Return the gradient of the parameter at an argument of a node; ``None`` without one."""
        name = self.graph.parameter(node, place)
        return None if name is None else self.gradients.get(name)

    def _balanced(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Return an order (N,) by batch, and factors (N,) with which each batch's derivatives sum to zero.

        The sums' null space has one dimension for each batch. Its projection joins images of the same batch only.
        """
        sums = delta.sum(2)
        lengths = sums.norm(dim=1)
        _, sizes, found = torch.linalg.svd((sums / lengths[:, None]).T, full_matrices=False)
        null = found[-self.batches :]
        if self.batches > 1 and not sizes[-self.batches - 1] > _GAP * sizes[-self.batches]:
            raise InputError("its images could not be assigned to batches")
        joined = null.T @ null
        size = joined.diagonal().sqrt()
        alike = (joined / (size * size[:, None])).abs()
        order, factors, left = [], [], list(range(self.images))
        while left:
            group = sorted(left, key=lambda other: -float(alike[left[0], other]))[: self.batch]
            part = joined[group][:, group]
            order += group
            own = torch.linalg.eigh(part).eigenvectors[:, -1]
            factors.append(own * own.sum().sign() / lengths[group])
            left = [other for other in left if other not in group]
            apart = not left or float(alike[group][:, left].max()) < _JOINED
            if self.batches > 1 and not (apart and float(alike[group][:, group].min()) > _JOINED):
                raise InputError("its images could not be assigned to batches")
        return torch.tensor(order), torch.cat(factors)

    def _summed(self, delta: Tensor, bias: Tensor) -> Tensor:
        """Return factors (N,) with which the derivatives sum to a given vector (O,)."""
        return torch.linalg.lstsq(delta.sum(2).T, bias[:, None]).solution[:, 0]

    def _inputs(self, delta: Tensor) -> Tensor:
        """Return the inputs (N, C, H, W) by least squares over the whole kernel."""
        shape = torch.Size([self.images, *self.graph.shapes[self.entrance.node][1:]])
        where = places_of(self.graph, self.entrance.layer, self.images)
        found = inputs(by_channel(delta), self.sent, where, self.images * self.entrance.positions)
        if found is None:
            raise InputError("its gradient does not determine all of its inputs")
        value = by_image(found.value, shape)
        most = value.flatten(1).amax(1).view(-1, *[1] * (value.ndim - 1))
        return torch.where(value > _DEAD * most, value, 0.0)

    def _logits(self, value: Sequence[Tensor]) -> tuple[Tensor, float]:
        """Return the derivative (N, K) by the logits that fits the last layer's gradient best, and its misfit.

        Args:
            value: inputs of the entrance, for each batch.
        """
        (last,) = self.graph.sources(self.graph.output)
        features = torch.cat([self.graph.after({self.entrance.node: part})[last] for part in value])
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


class _SwitchedReading(_Reading):
    """The reading of a linear layer before the last ReLU."""

    def start(self, misfit: float) -> SeparatedStart:
        """Return the start; raise `InputError` if the images were not separated."""
        if misfit != _FITS or self.batches > 1:
            raise InputError(MOVED)
        bias, switch = self._bias(), self.entrance.switch
        assert bias is not None
        assert switch is not None
        found = separate_states(torch.cat([self.sent[:, :, 0], bias[:, None]], 1), *self._behind(switch))
        if not found.complete or len(found.inputs) != self.images:
            raise InputError(f"{found.found} of {found.rank} sources were certified, for {self.images} images")
        pull, residual = self._logits([found.inputs])
        if not residual < misfit:
            raise InputError(f"the last layer's gradient does not fit its inputs (residual {residual:.2g})")
        return SeparatedStart(self.entrance, (Start(self.entrance.node, found.inputs, pull),), found, residual)

    def _behind(self, switch: Node) -> tuple[Head, Callable[[Tensor], Tensor], Tensor]:
        """Return the arguments of `separate_states` that describe the network behind the layer."""
        graph, node = self.graph, self.entrance.node
        (before,) = graph.sources(switch)
        weight = next(graph.fixed[node] for node, name in graph.parameters.items() if name == self.entrance.name)
        flat = weight.new_zeros(graph.shapes[self.entrance.layer])
        low, high = (graph.after({self.entrance.layer: flat + one})[before][0] for one in (0, 1))
        through = vjp(lambda values: graph.after({switch: values})[graph.output], flat)[1]
        pulls = torch.eye(graph.shapes[graph.output][1], dtype=flat.dtype)
        head = torch.stack([through(pull.expand(len(flat), -1))[0][0] for pull in pulls], 1) * (high - low)[:, None]
        gain = (high - low).abs() * weight.norm(dim=1)
        return Head(head, self._directions()), lambda values: graph.after({node: values})[before], gain

    def _directions(self) -> Tensor:
        """Return an orthonormal basis (K, M) of the images' derivatives by the logits.

        These are the columns of the last layer's gradient. Its rows sum to zero if every image's derivative does, as
        under cross-entropy.
        """
        sent = self._last_layer()
        balanced = bool(sent.sum(0).norm() < _BALANCED * sent.norm())
        sent = sent - sent.mean(0) if balanced else sent
        return torch.linalg.svd(sent, full_matrices=False)[0][:, : min(self.images, len(sent) - balanced)]


def _neighbors(
    near: tuple[int, int], pairs: Sequence[list[tuple[int, int]]], alone: dict[tuple[int, int], int]
) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield the corners that share a kernel weight with a corner, as that weight and the output and input position."""
    for k, joined in enumerate(pairs):
        for (out, own), (other_out, other_own) in permutations(joined, 2) if len(joined) == 2 else ():
            if (out, other_own) == near and (other_out, own) in alone:
                yield k, (other_out, own)


def _rectified(values: Tensor) -> bool:
    """Return True if each row (C,) has hardly a negative part, as outputs of a ReLU with errors."""
    return bool(functional.cosine_similarity(values, values.clamp(min=0)).min() >= _LINKED)


def _least(misfit: Callable[[float], float]) -> float:
    """Return the factor, between the exponentials of `_SIZES`, for which a misfit is least."""
    from scipy.optimize import minimize_scalar  # slow to import

    points = np.linspace(*_SIZES, _POINTS)
    best = int(np.argmin([misfit(float(np.exp(point))) for point in points]))
    low, high = points[max(best - 1, 0)], points[min(best + 1, _POINTS - 1)]
    found = minimize_scalar(
        lambda t: misfit(float(np.exp(t))), bounds=(low, high), method="bounded", options={"xatol": 1e-12}
    )
    return float(np.exp(found.x))
