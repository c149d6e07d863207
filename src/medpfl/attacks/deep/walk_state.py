"""The state of a walk back through a network: where it starts, what it knows, and what it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import Node

from medpfl.attacks.deep.graph import Graph
from medpfl.attacks.deep.kernel_systems import Inputs
from medpfl.attacks.deep.normalized_convolution import SolvedInputs
from medpfl.attacks.deep.pooled_convolution import PooledInputs

__all__ = ["Corrected", "Memory", "Peeled", "Pull", "Start", "reconciled"]

_MARGIN = 4.0
"""Ratio of the stated bound on errors to the largest difference between two readings."""

_AGREED, _MOST = 1e-3, 0.9
"""Relative difference of a channel below which two readings agree, and the share of channels that must."""


@dataclass(frozen=True, eq=False)
class Pull:
    """The loss's derivative with respect to a node.

    Attributes:
        value: the derivative; ``None`` if unknown.
        open: the derivative as if the next ReLU after the node had passed everything; ``None`` without such a ReLU.
        rectifier: this ReLU.
    """

    value: Tensor | None
    open: Tensor | None = None
    rectifier: Node | None = None


@dataclass(frozen=True, eq=False)
class Start:
    """Where a walk through an update of several images begins.

    Attributes:
        node: node through which the image reaches the output, and no other way.
        value: its values for every image.
        pull: (N, K) the loss's derivative with respect to the logits.
    """

    node: Node
    value: Tensor
    pull: Tensor


@dataclass(frozen=True, eq=False)
class Peeled:
    """Recovered values.

    Attributes:
        known: values by node. A ReLU's outputs are 0 wherever it may have been off.
        reasons: why other values were not recovered, last layer first.
        residuals: relative residual of each solved layer by name, last layer first.
        differences: for recovered ReLU outputs that follow from earlier ones, the relative difference between the two,
            over the channels that agree.
    """

    known: dict[Node, Tensor]
    reasons: tuple[str, ...]
    residuals: Mapping[str, float] = field(default_factory=dict)
    differences: Mapping[Node, float] = field(default_factory=dict)

    @property
    def bound(self) -> float | None:
        """Bound on the relative error of an image's values; ``None`` where no two readings can be compared.

        It is a multiple of the largest difference between two readings of the same values, from different gradients.
        ``python -m benchmarks separation`` counts the batches in which it holds.
        """
        return _MARGIN * max(self.differences.values()) if self.differences else None

    def rim(self, graph: Graph) -> tuple[Node, ...]:
        """Return the known nodes that the image reaches without passing another known one."""
        found, open_, met = [], [graph.image], set()
        while open_:
            node = open_.pop()
            if node in met:
                continue
            met.add(node)
            if node in self.known:
                found.append(node)
            else:
                open_ += node.users
        return tuple(node for node in graph.nodes if node in found)


@dataclass(frozen=True, eq=False)
class Corrected:
    """Corrections to one ReLU: rows (C,), their states (C, L), and the number of corrections."""

    rows: Tensor
    states: Tensor
    times: int = 1


@dataclass(frozen=True, eq=False)
class Memory:
    """Findings of earlier walks.

    Attributes:
        rectifiers: corrections.
        sizes: root mean square of values that batch norm hides, and the number of times it was changed.
        solved: the derivative and size for which a layer was solved, with the result.
        pooled: the values and derivative behind an average pooling for which the layer before it was solved, with the
            result.
    """

    rectifiers: dict[Node, Corrected] = field(default_factory=dict)
    sizes: dict[Node, tuple[float, int]] = field(default_factory=dict)
    solved: dict[Node, tuple[Tensor, float, Inputs | SolvedInputs | None]] = field(default_factory=dict)
    pooled: dict[Node, tuple[Tensor, Tensor, PooledInputs | None]] = field(default_factory=dict)


def reconciled(graph: Graph, read: Peeled) -> Peeled:
    """Return recovered values, compared with those that follow from the earliest of them by running the model.

    The two come from different gradients, so their difference shows errors that a residual does not. A strided
    convolution before batch norm in train mode leaves a constant of a channel undetermined. Where the other channels
    agree, the run gives it.
    """
    known, differences = dict(read.known), {}
    values = graph.after({node: known[node] for node in read.rim(graph)})
    for node, value in read.known.items():
        if graph.rectifier(node) is None or node not in values or value is values[node]:
            continue
        made = values[node]
        gaps = (value - made).transpose(0, 1).flatten(1).norm(dim=1) / _channel_size(made)
        agree = gaps <= _AGREED
        differences[node] = float(gaps[agree].max()) if agree.any() else float(gaps.max())
        if agree.float().mean() > _MOST:
            known[node] = torch.where(agree.view(1, -1, *[1] * (value.ndim - 2)), value, made)
    return Peeled(known, read.reasons, read.residuals, differences)


def _channel_size(values: Tensor) -> Tensor:
    """Return the typical norm of a channel's values."""
    return values.norm().clamp(min=1e-300) / values.shape[1] ** 0.5
