"""A walk back through a network in which values are only known or unknown: what the equations determine by count."""

from __future__ import annotations

import operator
from collections import defaultdict
from dataclasses import dataclass
from math import ceil, prod
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from medpfl.attacks.deep.entrances import Entrance
from medpfl.attacks.deep.graph import RECTIFIERS, SHAPES, Graph, layer_name
from medpfl.attacks.deep.kernel_systems import LARGEST, LAYERS, SPARE_EQUATIONS, is_plain, kernel_size, places_of
from medpfl.attacks.deep.passing import PLACEWISE, SLOPES, is_affine, obstacle

__all__ = ["TRACED", "CountedWalk", "LayerCount", "Limit"]

_OPS = torch.ops.aten

TRACED = 2
"""Number of images for which a model is traced: batch norm in train mode may reject one. Counts scale with it."""

_HIDDEN = "batch norm hides a constant in its inputs"
_UNMET = "no kernel weight meets some of its inputs"
_LARGE = "it has too many equations to solve"

Limit = Literal["count", "other", ""]


@dataclass(frozen=True)
class LayerCount:
    """A convolution that the walk meets, in numbers.

    Attributes:
        layer: its name.
        equations: K C_out, kernel weights times output channels.
        unknowns: images times positions of the inputs, per channel.
        read: True if its inputs are determined by count, here or at another layer with the same inputs.
        why: the reason if not, else ``""``.
    """

    layer: str
    equations: int
    unknowns: int
    read: bool
    why: str = ""


class _Stop(NamedTuple):
    """A node that a layer or operation does not show.

    Attributes:
        source: the node.
        where, why: name of the layer or operation, and the reason.
        limited: kind of the reason.
        ratio: equations by unknowns of a layer; 0 for operations.
    """

    source: Node
    where: str
    why: str
    limited: Limit
    ratio: float = 0.0


class CountedWalk:
    """One walk in which values are only known or unknown."""

    def __init__(self, graph: Graph, images: int, entrance: Entrance) -> None:
        self.graph, self.images, self.start = graph, images, entrance.layer
        self.known: set[Node] = {entrance.node}
        self.pulls: dict[Node, bool] = {graph.output: True}
        self.exact = self._after(entrance.node)
        self.waiting: dict[Node, list[tuple[Node, bool]]] = defaultdict(list)
        self.passed: set[Node] = set()
        self.met: dict[Node, str] = {}
        """Why each convolution's gradient does not determine its inputs, or ``""``."""
        self.stops: list[_Stop] = []
        for node in reversed(graph.nodes[1:]):
            self._back(node)

    def layers(self) -> tuple[LayerCount, ...]:
        """Return the convolutions that the walk meets, last first."""
        found = []
        for convolution, why in self.met.items():
            known = self.graph.sources(convolution)[0] in self.known
            numbers = self._numbers(convolution)
            found.append(LayerCount(self._name(convolution), *numbers, known, "" if known else why))
        return tuple(found)

    def earliest(self) -> str:
        """Return the earliest convolution whose inputs are known."""
        order = {node: place for place, node in enumerate(self.graph.nodes)}
        read = [node for node in self.met if self.graph.sources(node)[0] in self.known]
        return self._name(min([self.start, *read], key=lambda node: (order[self.graph.sources(node)[0]], order[node])))

    def stop(self) -> _Stop | None:
        """Return the last stop on the way to the image; ``None`` if the image is known."""
        if self.graph.image in self.known:
            return None
        open_ = [stop for stop in self.stops if stop.source not in self.known]
        if not open_:
            return _Stop(self.graph.image, self._name(self.start), "no convolution before it shows the images", "other")
        return max((stop for stop in open_ if stop.source is open_[-1].source), key=lambda stop: stop.ratio)

    def _after(self, start: Node) -> set[Node]:
        found = {start}
        for node in self.graph.nodes:
            sources = self.graph.sources(node)
            if sources and all(source in found for source in sources):
                found.add(node)
        return found

    def _back(self, node: Node) -> None:
        self._invert(node)
        for normal, pull in self.waiting.pop(node, []):
            self._normalized(normal, pull)
        if self.waiting.pop(node, []):
            self._add(node, False)  # a part of its derivative is missing
        pull, sources = self.pulls.get(node, False), self.graph.sources(node)
        if node in self.passed:
            return
        if node.target is operator.getitem:
            self._add(node.all_input_nodes[0], pull)
        elif sources and all(source in self.exact for source in sources):
            self._add_all(node, pull)
        elif node.target is _OPS.native_batch_norm.default and node.args[5]:
            self._normalized(node, pull)
        elif node.target in RECTIFIERS or node.target in SLOPES:
            if pull and node not in self.known and all(stop.source is not node for stop in self.stops):
                self.stops.append(_Stop(node, self._name(node), "no later layer shows its values", "other"))
            self._add(sources[0], pull and node in self.known)
        elif not is_affine(self.graph, node):
            self._stop(node, obstacle(node), pull)
        else:
            if node.target in LAYERS and pull:
                self._layer(node)
            self._add_all(node, pull)

    def _add(self, node: Node, pull: bool) -> None:
        self.pulls[node] = self.pulls.get(node, True) and pull

    def _add_all(self, node: Node, pull: bool) -> None:
        for source in self.graph.sources(node):
            self._add(source, pull)

    def _stop(self, node: Node, why: str, pull: bool) -> None:
        if pull:
            self.stops += [_Stop(one, self._name(node), why, "other") for one in self.graph.sources(node)]
        self._add_all(node, False)

    def _lack(self, convolution: Node) -> None:
        """Record that a convolution's gradient does not determine its inputs."""
        equations, unknowns = self._numbers(convolution)
        why, source = self.met[convolution], self.graph.sources(convolution)[0]
        limited: Limit = "other" if why in (_HIDDEN, _UNMET, _LARGE) else "count"
        self.stops.append(_Stop(source, self._name(convolution), why, limited, equations / unknowns))

    def _normalized(self, normal: Node, pull: bool) -> None:
        convolution = self.graph.sources(normal)[0]
        gamma, beta = (self.graph.parameter(normal, place) for place in (1, 2))
        plain = convolution.target is _OPS.convolution.default and self._plain(convolution)
        if not plain or not pull or gamma is None or beta is None or len(convolution.users) > 1:
            self._stop(normal, obstacle(normal), pull)
            return
        source = self.graph.sources(convolution)[0]
        self.passed.add(convolution)
        why = self._short(convolution, normalized=True)
        self.met[convolution] = why
        if why and source not in self.known:
            self.waiting[source].append((normal, pull))
            self._lack(convolution)
            return
        self.known.add(source)
        self._add(source, True)

    def _layer(self, node: Node) -> None:
        source = self.graph.sources(node)[0]
        if not self._plain(node):
            why = "its gradient is not that of one plain layer"
            self.stops.append(_Stop(source, self._name(node), why, "other"))
            return
        self.met[node] = self._short(node, normalized=False)
        if self.met[node]:
            self._lack(node)
        else:
            self.known.add(source)

    def _plain(self, node: Node) -> bool:
        """Return True if a layer's weight is sent, and its gradient is that of one plain layer."""
        return is_plain(self.graph, node) and self.graph.parameter(node, LAYERS[node.target].weight) is not None

    def _numbers(self, node: Node) -> tuple[int, int]:
        """Return the equations and unknowns of one input channel of a layer."""
        count, _, *edges = self.graph.shapes[self.graph.sources(node)[0]]
        equations = self.graph.shapes[node][1] * kernel_size(self.graph, node)
        return equations, count * self.images // TRACED * prod(edges)

    def _short(self, node: Node, normalized: bool) -> str:
        """Return why a layer's gradient does not determine its inputs by count; ``""`` if it does."""
        equations, unknowns = self._numbers(node)
        factor = SPARE_EQUATIONS if normalized else 1.0
        if equations < factor * unknowns:
            return f"{equations:,} equations for {unknowns:,} inputs per channel{_needing(equations, unknowns)}"
        if equations * unknowns > LARGEST:
            return _LARGE
        source = self.graph.sources(node)[0]
        shape, where = self.graph.shapes[source], places_of(self.graph, node, 1)
        images = shape[0] * self.images // TRACED
        if normalized and self.graph.rectifier(source) is None and _shifts(where, prod(shape[2:])):
            return _HIDDEN
        return _crowded(where, prod(shape[2:]), images, self.graph.shapes[node][1], factor)

    def _invert(self, node: Node) -> None:
        sources, shapes = self.graph.sources(node), self.graph.shapes
        if node not in self.known or len(sources) != 1 or sources[0] not in shapes:
            return
        placewise = node.target in PLACEWISE and is_affine(self.graph, node)
        if node.target in SHAPES or (placewise and shapes[sources[0]] == shapes.get(node)):
            self.known.add(sources[0])

    def _name(self, node: Node) -> str:
        names = [self.graph.parameters[n] for n in node.all_input_nodes if n in self.graph.parameters]
        return layer_name(names[0]) if names else f"operation '{node.name}'"


def _met(where: Tensor, count: int) -> Tensor:
    """Return which positions each kernel weight meets (K, D)."""
    met = torch.zeros(len(where), count + 1, dtype=torch.bool)
    return met.scatter_(1, where, torch.ones_like(where, dtype=torch.bool))[:, :count]


def _shifts(where: Tensor, count: int) -> bool:
    """Return True if some positions meet one kernel weight only, which meets no padding."""
    met = _met(where, count)
    alone = met & (met.sum(0) == 1)
    return bool(((where < count).all(1) & (alone == met).all(1)).any())


def _crowded(where: Tensor, count: int, images: int, outputs: int, factor: float) -> str:
    """Return why the positions cannot all be assigned to kernel weights that meet them; ``""`` if they can.

    Args:
        where: (K, L) input position of each kernel weight at each output position of one image.
        count: number of positions of one image.
        images: number of images.
        outputs: most positions that a weight gets: one per output channel.
        factor: equations that a position needs.
    """
    from scipy.sparse import csr_array  # slow to import
    from scipy.sparse.csgraph import maximum_flow

    kinds, sizes = torch.unique(_met(where, count).T, dim=0, return_counts=True)
    if not bool(kinds.any(1).all()):
        return _UNMET
    tenths, weights = round(10 * factor), kinds.shape[1]
    rows, kernels = (part.tolist() for part in kinds.nonzero(as_tuple=True))
    needs = [tenths * images * size for size in sizes.tolist()]
    first, end = weights + 1, weights + 1 + len(kinds)  # 0 is the source of the flow, `end` its sink
    heads = [0] * weights + [1 + k for k in kernels] + [first + k for k in range(len(kinds))]
    tails = [1 + k for k in range(weights)] + [first + k for k in rows] + [end] * len(kinds)
    limits = [10 * outputs] * weights + [sum(needs)] * len(rows) + needs
    flow = maximum_flow(csr_array((limits, (heads, tails)), shape=(end + 1, end + 1), dtype="int32"), 0, end)
    if flow.flow_value == sum(needs):
        return ""
    inside = (kinds[None] <= kinds[:, None]).all(2)  # (S, S) kinds that meet no other weights than each kind
    positions, own = images * (inside * sizes).sum(1), outputs * kinds.sum(1)
    worst = int((positions / own).argmax())
    few, many = int(own[worst]), int(positions[worst])
    return f"{few:,} equations for the {many:,} inputs per channel that meet the fewest weights{_needing(few, many)}"


def _needing(equations: int, unknowns: int) -> str:
    """Return the rest of a reason: the number of equations if it would suffice without batch norm."""
    needed = ceil(SPARE_EQUATIONS * unknowns)
    return f"; batch norm in train mode needs {needed:,}" if equations >= unknowns else ""
