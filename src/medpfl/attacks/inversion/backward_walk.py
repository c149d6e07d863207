"""What a network computed, read layer by layer from the gradient of its last layer back.

The walk keeps, of each node of a `Graph`, the loss's derivative by it (its *pull*) and, where a layer's gradient tells,
its value. A linear layer's and a convolution's inputs follow from their gradient and pull by linear least squares;
values say which rectifiers were on, and so how the pull goes on. One rectifier read wrongly spoils all that follows,
but shows at once in the next layer, whose gradient has many more numbers than its inputs: there it is put right, and
the walk begins anew.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from medpfl.attacks.inversion.graph import RECTIFIERS, Graph
from medpfl.attacks.inversion.kernel_systems import Inputs, active, inputs, places, pulls
from medpfl.attacks.inversion.layers import layer_input
from medpfl.attacks.inversion.passing import PLACEWISE, SHAPES, SLOPES, derivative, is_affine, obstacle
from medpfl.core.types import Tensors

__all__ = ["Peeled", "peel"]

_OPS = torch.ops.aten

_SURE = 6.0
"""Deviations above zero from which on a rectifier counts as on."""

_NOISY = 1e-2
"""Relative residual from which on a layer's gradient does not tell its inputs."""

_CORRECTIONS = 8
"""Of one rectifier, at most: under noise they need not come to an end. Then the walk goes on without."""

_LARGEST = 2**26
"""Numbers in the equations of one layer, from which on they are not solved: 512 MB."""


@dataclass(frozen=True, eq=False)
class Pull:
    """The loss's derivative by a node.

    Attributes:
        value: ``None`` where it is not known.
        open: the same as if the last rectifier behind it had passed everything; ``None`` behind none.
        rectifier: that one.
    """

    value: Tensor | None
    open: Tensor | None = None
    rectifier: Node | None = None


@dataclass(frozen=True, eq=False)
class Peeled:
    """Values that were read, by node, rectified ones 0 where they may be; and why others were not, last layer first."""

    known: dict[Node, Tensor]
    reasons: tuple[str, ...]

    def rim(self, graph: Graph) -> tuple[Node, ...]:
        """Of the nodes that are known, those that the image reaches by way of none of the others."""
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


def peel(graph: Graph, gradients: Tensors) -> Peeled:
    """Reads one update of a single image.

    Args:
        graph: of the model.
        gradients: of its parameters, in float64 on the CPU; all may have one factor in common.
    """
    rectifiers: dict[Node, Corrected] = {}
    solved: dict[Node, tuple[Tensor, Inputs | None]] = {}
    walk = _Walk(graph, gradients, rectifiers, solved)
    while not walk.run():
        walk = _Walk(graph, gradients, rectifiers, solved)
    known = dict(walk.known)
    for node in filter(graph.rectifier, known):
        known[node] = torch.where(known[node] > _SURE * walk.errors[node], known[node], 0.0)
    return Peeled(known, tuple(reason for node, reason in walk.stops if node not in known))


@dataclass(frozen=True, eq=False)
class Corrected:
    """What was put right of a rectifier: rows (C,), their states (C, L), and how often."""

    rows: Tensor
    states: Tensor
    times: int = 1


class _Again(Exception):  # noqa: N818  (no error: a rectifier was put right)
    """The walk must begin anew."""


class _Walk:
    """One walk, with what earlier ones have put right and solved."""

    def __init__(
        self,
        graph: Graph,
        gradients: Tensors,
        rectifiers: dict[Node, Corrected],
        solved: dict[Node, tuple[Tensor, Inputs | None]],
    ) -> None:
        self.graph, self.gradients, self.rectifiers, self.solved = graph, gradients, rectifiers, solved
        self.known: dict[Node, Tensor] = {}
        self.errors: dict[Node, Tensor] = {}
        self.pulls: dict[Node, Pull] = {}
        self.stops: list[tuple[Node, str]] = []

    def run(self) -> bool:
        """From the last layer to the image; whether it need not begin anew."""
        bias = self._parameter(self.graph.output, 0)
        if self.graph.output.target is not _OPS.addmm.default or bias is None:
            self._stop(self.graph.output, "a last linear layer with a bias is needed, whose gradient is the logits'")
            return True
        self.pulls[self.graph.output] = Pull(self.gradients[bias].view(self.graph.shapes[self.graph.output]))
        try:
            for node in reversed(self.graph.nodes[1:]):
                self._back(node)
        except _Again:
            return False
        return True

    def _back(self, node: Node) -> None:
        """From what is known of a node to what it takes."""
        self._invert(node)
        pull = self.pulls.get(node, Pull(None))
        if node.target is operator.getitem:
            self._add(node.all_input_nodes[0], pull)
        elif node.target in RECTIFIERS or node.target in SLOPES:
            self._activation(node, pull)
        elif not is_affine(self.graph, node):
            self._stop(node, obstacle(node), pull)
        else:
            if node.target is _OPS.convolution.default:
                self._convolution(node, pull)
            elif node.target is _OPS.addmm.default:
                self._linear(node, pull)
            self._through(node, pull)

    def _through(self, node: Node, pull: Pull) -> None:
        """The pull of what an affine operation takes."""
        sources = self.graph.sources(node)
        kept = node.target in PLACEWISE
        if pull.value is None and pull.open is not None and not kept and node.target is not _OPS.convolution.default:
            self._stop(node, "which of its values were rectified is told by no layer behind it")
        values = derivative(self.graph, node, pull.value)
        opened = derivative(self.graph, node, pull.open if kept else None)
        for source, value, other in zip(sources, values, opened, strict=True):
            same = other is not None and pull.open is not None and other.shape == pull.open.shape
            self._add(source, Pull(value, other, pull.rectifier) if same else Pull(value))

    def _add(self, node: Node, pull: Pull) -> None:
        """One of the uses of a node; of several, the sum is known if all are."""
        if node not in self.pulls:
            self.pulls[node] = pull
            return
        both = (self.pulls[node].value, pull.value)
        self.pulls[node] = Pull(None if both[0] is None or both[1] is None else both[0] + both[1])

    def _activation(self, node: Node, pull: Pull) -> None:
        (source,), value = self.graph.sources(node), self.known.get(node)
        if pull.value is None:
            self._add(source, Pull(None))
        elif node.target in SLOPES:
            self._add(source, Pull(None if value is None else pull.value * SLOPES[node.target](value)))
        else:
            on = None if value is None else value > _SURE * self.errors[node]
            corrected = self.rectifiers.get(node)
            if corrected is not None:
                shape = self.graph.shapes[node]
                rows, states = corrected.rows.view(1, -1, *[1] * (len(shape) - 2)), corrected.states.view(shape)
                on = torch.where(rows, states, on) if on is not None else states if rows.all() else None
            self._add(source, Pull(None if on is None else pull.value * on, pull.value, node))

    def _convolution(self, node: Node, pull: Pull) -> None:
        name, source = self._parameter(node, 1), self.graph.sources(node)[0]
        _, _, _, stride, padding, dilation, transposed, _, groups = node.args
        if name is None or transposed or groups != 1 or len(self.graph.shapes[source]) != 4:
            self._stop(node, "its kernels' gradient is not that of one plain convolution")
            return
        gradient = self.gradients[name].flatten(2)
        size, kernel = tuple(self.graph.shapes[source][2:]), tuple(self.gradients[name].shape[2:])
        geometry = {"stride": stride, "padding": padding, "dilation": dilation}
        where, count = places(size, kernel, geometry), size[0] * size[1]
        if pull.value is None:
            if pull.open is not None and pull.rectifier is not None:
                states = active(pull.open[0].flatten(1), gradient, where, count)
                if states is not None:
                    self._correct(pull.rectifier, torch.ones_like(states[:, 0]), states)
                edge = "x".join(map(str, self.graph.shapes[node][2:]))
                self._stop(node, f"its gradient does not tell which of its {edge} outputs were rectified")
            return
        equations = len(gradient) * len(where)
        if equations < count:
            self._stop(node, f"its gradient has {equations} equations for {count} inputs of a channel")
            return
        if equations * count > _LARGEST:
            self._stop(node, "its equations are too many to solve")
            return
        found = self._inputs(node, pull.value[0].flatten(1), gradient, where, count)
        if found is None:
            self._stop(node, "its gradient does not determine all of its inputs")
            return
        if not found.residual <= _NOISY:  # also where it is NaN
            self._stop(node, f"a share of {found.residual:.2g} of its gradient is noise")
            return
        if found.odd.any() and pull.open is not None and pull.rectifier is not None:
            self._repair(pull, found, gradient, where)
        self._learn(source, found.value.view(self.graph.shapes[source]), found.error)

    def _inputs(self, node: Node, pull: Tensor, gradient: Tensor, where: Tensor, count: int) -> Inputs | None:
        """As `inputs`, or as found in an earlier walk from the same pull."""
        before = self.solved.get(node)
        if before is None or not torch.equal(before[0], pull):
            self.solved[node] = before = (pull, inputs(pull, gradient, where, count))
        return before[1]

    def _repair(self, pull: Pull, found: Inputs, gradient: Tensor, where: Tensor) -> None:
        """Begins anew if a row that does not fit shows another state of its rectifier."""
        assert pull.value is not None
        assert pull.open is not None
        assert pull.rectifier is not None
        rows = found.odd.nonzero()[:, 0]
        told = pulls(found.value, gradient[rows], where)
        if told is None:
            return
        now, opened = (t[0].flatten(1)[rows] for t in (pull.value, pull.open))
        states = torch.where(opened == 0, now != 0, told / opened > 0.5)
        if (states != (now != 0)).any():
            whole = torch.zeros_like(pull.open[0].flatten(1), dtype=torch.bool)
            whole[rows] = states
            self._correct(pull.rectifier, found.odd, whole)

    def _correct(self, rectifier: Node, rows: Tensor, states: Tensor) -> None:
        """Begins anew with other states (C, L) of some rows (C,), unless it has been done too often."""
        old, times = self.rectifiers.get(rectifier), 1
        if old is not None:
            rows, states, times = rows | old.rows, torch.where(rows[:, None], states, old.states), old.times + 1
        if times <= _CORRECTIONS:
            self.rectifiers[rectifier] = Corrected(rows, states, times)
            raise _Again

    def _linear(self, node: Node, pull: Pull) -> None:
        """The inputs of a linear layer, from its weight's gradient."""
        name, source = self._parameter(node, 2), self.graph.sources(node)[0]
        if pull.value is None:
            return
        if name is None or len(pull.value) != 1:
            self._stop(node, "its weight's gradient is not that of one plain layer")
            return
        sent, size = self.gradients[name], pull.value.norm()
        value = layer_input(sent[None], pull.value)
        residual = (sent - pull.value.T @ value).square().mean().sqrt()
        if not (value.isfinite().all() and residual <= _NOISY * sent.square().mean().sqrt()):
            self._stop(node, "its gradient is noise, or zero")
            return
        self._learn(source, value, (residual / size).expand_as(value))

    def _learn(self, node: Node, value: Tensor, error: Tensor) -> None:
        """Keeps the surer of two readings."""
        error = error.reshape(value.shape)
        if node not in self.known or error.mean() < self.errors[node].mean():
            self.known[node], self.errors[node] = value, error

    def _invert(self, node: Node) -> None:
        """What an operation took, from what it gave, if it is one to one."""
        sources = self.graph.sources(node)
        if node not in self.known or len(sources) != 1:
            return
        source, value, error = sources[0], self.known[node], self.errors[node]
        shape = self.graph.shapes.get(source)
        if node.target in SHAPES and shape is not None:
            self._learn(source, value.view(shape), error.view(shape))
        elif node.target in PLACEWISE and shape is not None and shape == value.shape and is_affine(self.graph, node):
            low, high = (self.graph.call(node, {source: value.new_full(shape, number)}) for number in (0.0, 1.0))
            if (high != low).all():
                self._learn(source, (value - low) / (high - low), error / (high - low).abs())

    def _parameter(self, node: Node, place: int) -> str | None:
        """The name of what stands at a place of a node's arguments, if it is sent and used but once."""
        other = node.args[place] if len(node.args) > place else None
        if isinstance(other, Node) and other.target is _OPS.t.default:
            other = other.args[0]
        if not isinstance(other, Node) or other not in self.graph.parameters or len(other.users) > 1:
            return None
        name = self.graph.parameters[other]
        return name if name in self.gradients else None

    def _stop(self, node: Node, reason: str, pull: Pull | None = None) -> None:
        """Notes why what a node takes was not read, and that no derivative of it is known where a pull is given."""
        names = [self.graph.parameters[n] for n in node.all_input_nodes if n in self.graph.parameters]
        where = f"layer '{names[0].rpartition('.')[0]}'" if names else f"operation '{node.name}'"
        for source in self.graph.sources(node):
            if pull is None or pull.value is not None or pull.open is not None:  # else the walk had ended before
                self.stops.append((source, f"{where}: {reason}"))
            if pull is not None:
                self._add(source, Pull(None))
