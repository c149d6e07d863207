"""Layer-by-layer recovery of a network's hidden values from its gradient, from the last layer back.

For each node of a `Graph`, the walk keeps the loss's derivative with respect to it (its *pull*) and, where a layer's
gradient reveals it, its value. The inputs of a linear layer or convolution follow from its gradient and pull by linear
least squares. The values show which ReLUs were on, and so how the pull continues. One wrong ReLU spoils everything
after it. But it shows at once in the next layer, whose gradient has many more elements than its inputs. There it is
corrected, and the walk begins again.
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
"""Standard deviations above zero at which a ReLU counts as on."""

_NOISY = 1e-2
"""Relative residual above which a layer's gradient does not determine its inputs."""

_CORRECTIONS = 8
"""Maximum number of corrections per ReLU. Under noise they need not come to an end; the walk then continues without
more."""

_LARGEST = 2**26
"""Number of matrix elements above which a layer's equations are not solved: 512 MB."""


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
class Peeled:
    """Recovered values.

    Attributes:
        known: values by node. ReLU outputs are 0 where they may be.
        reasons: why other values were not recovered, last layer first.
    """

    known: dict[Node, Tensor]
    reasons: tuple[str, ...]

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


def peel(graph: Graph, gradients: Tensors) -> Peeled:
    """Recover the hidden values behind one update of a single image.

    Args:
        graph: the model's graph.
        gradients: the parameters' gradients, in float64 on the CPU; all may share one unknown factor.
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
    """Corrections to one ReLU: rows (C,), their states (C, L), and the number of corrections."""

    rows: Tensor
    states: Tensor
    times: int = 1


class _Again(Exception):  # noqa: N818  (no error: a ReLU was corrected)
    """Signal that the walk must begin again."""


class _Walk:
    """One walk, with the corrections and solutions of earlier ones."""

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
        """Walk from the last layer to the image. Return False if the walk must begin again."""
        bias = self._parameter(self.graph.output, 0)
        if self.graph.output.target is not _OPS.addmm.default or bias is None:
            self._stop(self.graph.output, "the model must end in a linear layer with a bias")
            return True
        self.pulls[self.graph.output] = Pull(self.gradients[bias].view(self.graph.shapes[self.graph.output]))
        try:
            for node in reversed(self.graph.nodes[1:]):
                self._back(node)
        except _Again:
            return False
        return True

    def _back(self, node: Node) -> None:
        """Pass the knowledge about a node on to its inputs."""
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
        """Pass the pull through an affine operation to its inputs."""
        sources = self.graph.sources(node)
        kept = node.target in PLACEWISE
        if pull.value is None and pull.open is not None and not kept and node.target is not _OPS.convolution.default:
            self._stop(node, "no later layer shows which of its values a ReLU set to 0")
        values = derivative(self.graph, node, pull.value)
        opened = derivative(self.graph, node, pull.open if kept else None)
        for source, value, other in zip(sources, values, opened, strict=True):
            same = other is not None and pull.open is not None and other.shape == pull.open.shape
            self._add(source, Pull(value, other, pull.rectifier) if same else Pull(value))

    def _add(self, node: Node, pull: Pull) -> None:
        """Add the pull from one use of a node. With several uses, the sum is known only if all parts are."""
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
            self._stop(node, "its gradient is not that of one plain convolution")
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
                self._stop(node, f"its gradient does not show which of its {edge} outputs a ReLU set to 0")
            return
        equations = len(gradient) * len(where)
        if equations < count:
            self._stop(node, f"its gradient gives {equations} equations for {count} inputs per channel")
            return
        if equations * count > _LARGEST:
            self._stop(node, "it has too many equations to solve")
            return
        found = self._inputs(node, pull.value[0].flatten(1), gradient, where, count)
        if found is None:
            self._stop(node, "its gradient does not determine all of its inputs")
            return
        if not found.residual <= _NOISY:  # also where it is NaN
            self._stop(node, f"a fraction of {found.residual:.2g} of its gradient is noise")
            return
        if found.odd.any() and pull.open is not None and pull.rectifier is not None:
            self._repair(pull, found, gradient, where)
        self._learn(source, found.value.view(self.graph.shapes[source]), found.error)

    def _inputs(self, node: Node, pull: Tensor, gradient: Tensor, where: Tensor, count: int) -> Inputs | None:
        """Return the result of `inputs`, reusing an earlier walk's result for the same pull."""
        before = self.solved.get(node)
        if before is None or not torch.equal(before[0], pull):
            self.solved[node] = before = (pull, inputs(pull, gradient, where, count))
        return before[1]

    def _repair(self, pull: Pull, found: Inputs, gradient: Tensor, where: Tensor) -> None:
        """Begin again if a row that does not fit shows other states of its ReLU."""
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
        """Begin again with other states (C, L) in some rows (C,), unless this ReLU was corrected too often."""
        old, times = self.rectifiers.get(rectifier), 1
        if old is not None:
            rows, states, times = rows | old.rows, torch.where(rows[:, None], states, old.states), old.times + 1
        if times <= _CORRECTIONS:
            self.rectifiers[rectifier] = Corrected(rows, states, times)
            raise _Again

    def _linear(self, node: Node, pull: Pull) -> None:
        """Recover a linear layer's inputs from its weight gradient."""
        name, source = self._parameter(node, 2), self.graph.sources(node)[0]
        if pull.value is None:
            return
        if name is None or len(pull.value) != 1:
            self._stop(node, "its gradient is not that of one plain linear layer")
            return
        sent, size = self.gradients[name], pull.value.norm()
        value = layer_input(sent[None], pull.value)
        residual = (sent - pull.value.T @ value).square().mean().sqrt()
        if not (value.isfinite().all() and residual <= _NOISY * sent.square().mean().sqrt()):
            self._stop(node, "its gradient is noise, or zero")
            return
        self._learn(source, value, (residual / size).expand_as(value))

    def _learn(self, node: Node, value: Tensor, error: Tensor) -> None:
        """Keep the more certain of two values."""
        error = error.reshape(value.shape)
        if node not in self.known or error.mean() < self.errors[node].mean():
            self.known[node], self.errors[node] = value, error

    def _invert(self, node: Node) -> None:
        """Recover an operation's input from its output, if the operation is one to one."""
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
        """Return the name of the parameter at argument `place` of a node, if it is sent and used only once."""
        other = node.args[place] if len(node.args) > place else None
        if isinstance(other, Node) and other.target is _OPS.t.default:
            other = other.args[0]
        if not isinstance(other, Node) or other not in self.graph.parameters or len(other.users) > 1:
            return None
        name = self.graph.parameters[other]
        return name if name in self.gradients else None

    def _stop(self, node: Node, reason: str, pull: Pull | None = None) -> None:
        """Record why a node's inputs were not recovered. If a pull is given, mark their derivatives as unknown."""
        names = [self.graph.parameters[n] for n in node.all_input_nodes if n in self.graph.parameters]
        where = f"layer '{names[0].rpartition('.')[0]}'" if names else f"operation '{node.name}'"
        for source in self.graph.sources(node):
            if pull is None or pull.value is not None or pull.open is not None:  # else the walk had ended before
                self.stops.append((source, f"{where}: {reason}"))
            if pull is not None:
                self._add(source, Pull(None))
