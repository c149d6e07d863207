"""Values that a walk back through a network has recovered, with their errors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.fx import Node

from medpfl.attacks.deep.graph import SHAPES, Graph
from medpfl.attacks.deep.passing import PLACEWISE, is_affine

__all__ = ["RecoveredValues"]

_SURE, _SUREST, _BELOW = 6.0, 100.0, 3.0
"""Standard deviations above zero at which a ReLU counts as on: at least `_SURE`, and `_BELOW` times as many as the
least value is below zero, up to `_SUREST`. Outputs of a ReLU below zero show errors that the residuals do not."""


class RecoveredValues:
    """Recovered values by node, with their standard errors."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._values: dict[Node, Tensor] = {}
        self._errors: dict[Node, Tensor] = {}

    def __contains__(self, node: Node) -> bool:
        return node in self._values

    def __iter__(self) -> Iterator[Node]:
        return iter(self._values)

    def __getitem__(self, node: Node) -> Tensor:
        return self._values[node]

    def get(self, node: Node) -> Tensor | None:
        """Return a node's values; ``None`` if they were not recovered."""
        return self._values.get(node)

    def learn(self, node: Node, value: Tensor, error: Tensor) -> None:
        """Keep the more certain of two values."""
        error = error.reshape(value.shape)
        if node not in self or error.mean() < self._errors[node].mean():
            self._values[node], self._errors[node] = value, error

    def invert(self, node: Node) -> None:
        """Learn an operation's input from its output, if the operation is one to one."""
        sources = self.graph.sources(node)
        if node not in self or len(sources) != 1:
            return
        source, value, error = sources[0], self._values[node], self._errors[node]
        shape = self.graph.shapes.get(source)
        if node.target in SHAPES and shape is not None:
            self.learn(source, value.view(shape), error.view(shape))
        elif node.target in PLACEWISE and shape is not None and shape == value.shape and is_affine(self.graph, node):
            low, high = (self.graph.call(node, {source: value.new_full(shape, number)}) for number in (0.0, 1.0))
            if (high != low).all():
                self.learn(source, (value - low) / (high - low), error / (high - low).abs())

    def on(self, node: Node) -> Tensor:
        """Return which of a node's values the ReLU before them has passed."""
        value, error = self._values[node], self._errors[node]
        below = -float((value / error.clamp(min=1e-300)).min())
        return value > min(max(_BELOW * below, _SURE), _SUREST) * error

    def rectified(self, node: Node) -> Tensor:
        """Return a node's values, without those that a ReLU may have set to 0."""
        value = self._values[node]
        return torch.where(self.on(node), value, 0.0) if self.graph.rectifier(node) else value
