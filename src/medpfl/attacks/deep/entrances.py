"""The layers of a network at which the images of a batch can be separated.

There are two kinds. Where a ReLU comes *before* a layer, its inputs are not negative and sparse
(`medpfl.attacks.deep.sources`). Where one comes *behind* a linear layer, and then only affine operations, each image's
derivative is 0 where its ReLU is off, and otherwise known up to the derivative by the logits
(`medpfl.attacks.deep.switches`). The inputs of such a layer may be anything, the images themselves too.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from medpfl.attacks.deep.graph import RECTIFIERS, Graph
from medpfl.attacks.deep.kernel_systems import LAYERS, is_plain, places_of
from medpfl.attacks.deep.passing import is_affine, is_scaled
from medpfl.attacks.deep.switches import most_images

__all__ = ["MOVED", "NO_ENTRANCE", "NO_FACTORS", "Entrance", "entrances"]

_OPS = torch.ops.aten

_MAPS = {(2, 2), (1, 1), ()}
"""Maps on which a kernel weight meets a single position; a linear layer has none."""

NO_ENTRANCE = (
    "no hidden linear layer has a ReLU before it, or as the last one behind it, "
    "and no 3 x 3 convolution over 2 x 2 positions has inputs from a ReLU"
)
"""Why a model has no entrance."""

NO_FACTORS = "no bias follows it, whose gradient would show its images' factors"
"""Why the factors between images stay unknown at an entrance."""


MOVED = "its ReLU's states separate the images of a single step only"
"""Why an entrance does not serve for an update of several steps or batches."""


class Entrance(NamedTuple):
    """A convolution or linear layer whose inputs `separate` or `separate_states` can read.

    Attributes:
        node: the inputs, through which the image reaches the output, and no other way.
        layer: the convolution or linear layer.
        name: the parameter name of its weight.
        where: (K, L) input position of each kernel weight at each output position of one image; D for padding.
        switch: the ReLU behind the layer whose states separate the images; ``None`` if the inputs come from a ReLU, and
            their zeros do.
    """

    node: Node
    layer: Node
    name: str
    where: Tensor
    switch: Node | None = None

    @property
    def positions(self) -> int:
        """D, the number of positions of one image."""
        return self.where.shape[1]

    def pairs(self, weight: int) -> list[tuple[int, int]]:
        """Return the output and input positions that a kernel weight joins."""
        return [(place, int(own)) for place, own in enumerate(self.where[weight]) if own < self.positions]

    def most(self, graph: Graph) -> int:
        """Return the largest number of images that are separated, linked and certified, by count."""
        inputs, outputs = graph.shapes[self.node][1], graph.shapes[self.layer][1]
        most = (3 * min(inputs, outputs) - 1) // 4
        if self.switch is not None:
            return most_images(outputs, graph.shapes[graph.output][1], most)
        if self.positions > 1:
            most = min(most, outputs // 2)  # a weight that meets two positions must tell them apart
        return min(most, max(1, min(inputs // 2, inputs - 10)))  # zeros that certify a source


def entrances(graph: Graph) -> Iterator[Entrance]:
    """Yield the layers at which images can be separated, the last one first; at each, by zeros before by states."""
    passages = graph.passages()
    for node in passages:
        shape = graph.shapes.get(node)
        if shape is None or tuple(shape[2:]) not in _MAPS:
            continue
        for layer in node.users:
            if layer.target not in LAYERS or layer is graph.output or not is_plain(graph, layer):
                continue
            name = graph.parameter(layer, LAYERS[layer.target].weight)
            normal = graph.batch_norm(layer)
            if name is None or (normal is not None and normal.args[5] and prod(shape[2:]) == 1):
                continue  # derivatives sum to zero over the images: the gradient holds only differences of inputs
            where = places_of(graph, layer, 1)
            if where.shape[1] != prod(shape[2:]) or (len(where) != 9 and where.shape != (1, 1)):
                continue
            if graph.rectifier(node) is not None:
                yield Entrance(node, layer, name, where)
            switch = _switch(graph, layer) if layer in passages else None
            if switch is not None:
                yield Entrance(node, layer, name, where, switch)


def _switch(graph: Graph, layer: Node) -> Node | None:
    """Return the ReLU behind a linear layer if only affine operations follow it; ``None`` otherwise."""
    if layer.target is not _OPS.addmm.default or graph.shapes[layer][0] != graph.shapes[graph.image][0]:
        return None
    node = layer
    while node.target not in RECTIFIERS:
        if len(node.users) != 1 or (node is not layer and not is_scaled(graph, node)):
            return None
        (node,) = node.users
    after = graph.nodes[graph.nodes.index(node) + 1 :]
    return node if after and all(is_affine(graph, other) for other in after) else None
