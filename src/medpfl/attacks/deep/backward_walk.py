"""Layer-by-layer recovery of a network's hidden values from its gradient, from the last layer back.

For each node of a `Graph`, the walk keeps the loss's derivative with respect to it (its *pull*) and, where a layer's
gradient reveals it, its value. The inputs of a linear layer or convolution follow from its gradient and pull by linear
least squares. The values show which ReLUs were on, and so how the pull continues. One wrong ReLU spoils everything
after it. But it shows at once in the next layer, whose gradient has many more elements than its inputs. There it is
corrected, and the walk begins again.

An update of several images needs a start: the values of a layer near the end, for every image. Positions then run over
all images in turn, and everything else is as for one image. Batch norm in train mode hides the common size of its
inputs. It follows from the gradient of the batch norm's bias before them.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from medpfl.attacks.deep.contrast import common_factor, size_factor
from medpfl.attacks.deep.graph import RECTIFIERS, Graph, layer_name
from medpfl.attacks.deep.kernel_systems import (
    LARGEST,
    LAYERS,
    SPARE_EQUATIONS,
    Inputs,
    active,
    by_channel,
    by_image,
    inputs,
    is_plain,
    kernels,
    places_of,
    pulls,
)
from medpfl.attacks.deep.normalized_convolution import NormalizedConvolution, SolvedInputs, normalized_layer
from medpfl.attacks.deep.passing import PLACEWISE, SLOPES, derivative, is_affine, obstacle, slope_at
from medpfl.attacks.deep.pooled_convolution import SPARE_STATES
from medpfl.attacks.deep.pooled_path import pooled_path
from medpfl.attacks.deep.recovered_values import RecoveredValues
from medpfl.attacks.deep.walk_state import Corrected, Memory, Peeled, Pull, Start, reconciled
from medpfl.core.types import Tensors

__all__ = ["peel"]

_OPS = torch.ops.aten

_NOISY = 1e-2
"""Relative residual above which a layer's gradient does not determine its inputs."""

_CORRECTIONS = 8
"""Maximum number of corrections per ReLU. Under noise they need not come to an end; the walk then continues without
more."""

_SAME_SIZE, _RESIZES = 1e-7, 4
"""Relative change of a size that is none, and maximum number of times the walk begins again for one size."""


def peel(
    graph: Graph, gradients: Tensors, start: Start | None = None, variances: Mapping[Node, Tensor] | None = None
) -> Peeled:
    """Recover the hidden values behind one update.

    Args:
        graph: the model's graph, for as many images as are in the update.
        gradients: the parameters' gradients, in float64 on the CPU; all may share one unknown factor.
        start: where the walk begins; ``None``: at the last layer, for an update of a single image.
        variances: variances (C,) of the inputs of batch norms in train mode, by node, if they are sent.
    """
    memory = Memory()
    walk = _Walk(graph, gradients, memory, variances or {})
    while not walk.run(start):
        walk = _Walk(graph, gradients, memory, variances or {})
    known = {node: walk.known.rectified(node) for node in walk.known}
    reasons = tuple(reason for node, reason in walk.stops if node not in known)
    return reconciled(graph, Peeled(known, reasons, walk.residuals))


class _Again(Exception):  # noqa: N818  (no error: a ReLU was corrected)
    """Signal that the walk must begin again."""


class _Walk:
    """One walk, with the findings of earlier ones."""

    def __init__(self, graph: Graph, gradients: Tensors, memory: Memory, variances: Mapping[Node, Tensor]) -> None:
        self.graph, self.gradients, self.memory, self.variances = graph, gradients, memory, variances
        self.known = RecoveredValues(graph)
        self.pulls: dict[Node, Pull] = {}
        self.exact: dict[Node, Any] = {}
        """Values of the start and of all nodes after it."""
        self.hidden: dict[Node, Tensor] = {}
        """Parts of derivatives that shrink as their node's values grow, because batch norm hides their size."""
        self.waiting: dict[Node, list[tuple[Node, Pull]]] = defaultdict(list)
        """Batch norms that can be passed once their convolution's inputs are known."""
        self.passed: set[Node] = set()
        """Convolutions that were passed together with the batch norm after them."""
        self.stops: list[tuple[Node, str]] = []
        self.residuals: dict[str, float] = {}

    def run(self, start: Start | None) -> bool:
        """Walk from the last layer to the image. Return False if the walk must begin again."""
        if start is not None:
            self._begin(start)
        else:
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

    def _begin(self, start: Start) -> None:
        """Compute the values from the start to the output."""
        own = float(start.value.square().mean().sqrt())
        size, _ = self.memory.sizes.setdefault(start.node, (own, 0))
        self.exact = self.graph.after({start.node: start.value * (size / own)})
        self.known.learn(start.node, self.exact[start.node], torch.zeros_like(start.value))
        self.pulls[self.graph.output] = Pull(start.pull)

    def _back(self, node: Node) -> None:
        """Pass the knowledge about a node on to its inputs."""
        self.known.invert(node)
        for normal, behind in self.waiting.pop(node, []):
            self._normalized(normal, behind)
        if self.waiting.get(node):  # its inputs stay unknown, and with them a part of the derivative
            self._add(node, Pull(None))
        pull = self.pulls.get(node, Pull(None))
        if node in self.passed:
            return
        if node.target is operator.getitem:
            self._add(node.all_input_nodes[0], pull)
        elif self._after_start(node):
            self._through_exact(node, pull)
        elif node.target is _OPS.native_batch_norm.default and node.args[5]:
            self._normalized(node, pull)
        elif node.target in RECTIFIERS or node.target in SLOPES:
            self._activation(node, pull)
        elif not is_affine(self.graph, node):
            self._stop(node, obstacle(node), pull)
        else:
            if node.target in LAYERS:
                self._layer(node, pull)
            elif node.target is _OPS.avg_pool2d.default and pull.value is not None and node in self.known:
                self._pooled(node, pull.value)
            self._through(node, pull)

    def _after_start(self, node: Node) -> bool:
        """Return True if all inputs of a node are known from the start on."""
        sources = self.graph.sources(node)
        return bool(sources) and all(source in self.exact for source in sources)

    def _through_exact(self, node: Node, pull: Pull) -> None:
        """Pass the pull through an operation at the known values of its inputs."""
        if pull.value is not None:
            values = slope_at(self.graph, node, pull.value, self.exact)
            for source, value in zip(self.graph.sources(node), values, strict=True):
                self._add(source, Pull(value))

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
            on = None if value is None else self.known.on(node)
            corrected = self.memory.rectifiers.get(node)
            if corrected is not None:
                shape = self.graph.shapes[node]
                rows = corrected.rows.view(1, -1, *[1] * (len(shape) - 2))
                states = by_image(corrected.states, shape)
                on = torch.where(rows, states, on) if on is not None else states if rows.all() else None
            if on is not None and node in self.memory.sizes:
                self._settle(node, pull.value, on)
            self._add(source, Pull(None if on is None else pull.value * on, pull.value, node))

    def _settle(self, node: Node, pull: Tensor, on: Tensor) -> None:
        """Begin again with another size of a ReLU's outputs if the batch norm before it shows one."""
        normal = self.graph.normalization(node)
        bias = None if normal is None else self._parameter(normal, 2)
        size, times = self.memory.sizes[node]
        if bias is None or times >= _RESIZES:
            return
        hidden = pull if node in self.exact else self.hidden.get(node, torch.zeros_like(pull))
        shrinking, rest = (by_channel(t * on).sum(1) for t in (hidden, pull - hidden))
        factor = common_factor(self.gradients[bias] - rest, shrinking)
        if factor > 0 and abs(factor - 1) > _SAME_SIZE:
            self.memory.sizes[node] = size / factor, times + 1
            raise _Again

    def _normalized(self, node: Node, pull: Pull) -> None:
        """Pass a batch norm in train mode, and recover the inputs of the convolution before it."""
        layer = normalized_layer(self.graph, node, self.gradients)
        if layer is None or pull.value is None:
            self._stop(node, obstacle(node), pull)
            return
        convolution = self.graph.sources(node)[0]
        source = self.graph.sources(convolution)[0]
        self.passed.add(convolution)
        dy, name = by_channel(pull.value), self._layer_name(convolution)
        if source in self.known:
            delta = layer.derivative(dy, by_channel(self.known.rectified(source)))
        else:
            equations = len(layer.sent) * layer.sent.shape[2]
            size, _ = self.memory.sizes.get(source, (1.0, 0))
            found, reason = None, "its gradient does not determine all of its inputs"
            if equations < SPARE_EQUATIONS * layer.count:
                reason = f"its gradient gives {equations} equations for {layer.count} inputs per channel"
            elif equations * layer.count > LARGEST:
                reason = "it has too many equations to solve"
            else:
                found = self._solved_inputs(node, layer, dy, size)
            if found is None:
                self.waiting[source].append((node, pull))
                self._stop(convolution, reason)
                return
            if not found.residual <= _NOISY:
                self._stop(convolution, f"a fraction of {found.residual:.2g} of its gradient is noise", pull)
                return
            self.residuals[name] = found.residual
            if found.odd.any() and pull.open is not None and pull.rectifier is not None:
                rows = found.odd.nonzero()[:, 0]
                self._repair(pull, found.odd, layer.told(found.value, rows))
            shape = self.graph.shapes[source]
            self.memory.sizes.setdefault(source, (1.0, 0))
            self.known.learn(source, by_image(found.value, shape), by_image(found.error, shape))
            delta = layer.derivative(dy, by_channel(self.known.rectified(source)))
        (value,) = derivative(self.graph, convolution, by_image(delta, self.graph.shapes[convolution]))
        assert value is not None
        self.hidden[source] = self.hidden[source] + value if source in self.hidden else value
        self._add(source, Pull(value))

    def _solved_inputs(self, node: Node, layer: NormalizedConvolution, dy: Tensor, size: float) -> SolvedInputs | None:
        """Return the inputs of a convolution before a batch norm, reusing an earlier walk's where nothing changed."""
        before = self.memory.solved.get(node)
        if before is not None and before[1] == size and torch.equal(before[0], dy):
            found = before[2]
        else:
            earlier = before[2] if before is not None else None
            found = layer.solve(dy, size, None if earlier is None else earlier.value)
            self.memory.solved[node] = dy, size, found
        assert found is None or isinstance(found, SolvedInputs)
        return found

    def _layer(self, node: Node, pull: Pull) -> None:
        """Recover the inputs of a convolution or a linear layer from its weight's gradient."""
        source = self.graph.sources(node)[0]
        name = self._parameter(node, LAYERS[node.target].weight) if is_plain(self.graph, node) else None
        if name is None:
            self._stop(node, "its gradient is not that of one plain layer")
            return
        gradient, shape, where = kernels(self.gradients[name]), self.graph.shapes[source], places_of(self.graph, node)
        count = shape[0] * prod(shape[2:])
        if pull.value is None:
            if len(shape) == 4 and pull.open is not None and pull.rectifier is not None:
                states = active(by_channel(pull.open), gradient, where, count)
                if states is not None:
                    self._correct(pull.rectifier, torch.ones_like(states[:, 0]), states)
                edge = "x".join(map(str, self.graph.shapes[node][2:]))
                self._stop(node, f"its gradient does not show which of its {edge} outputs a ReLU set to 0")
            return
        equations = len(gradient) * len(where)
        if equations < count:
            self._stop(node, f"its gradient gives {equations} equations for {count} inputs per channel")
            return
        if equations * count > LARGEST:
            self._stop(node, "it has too many equations to solve")
            return
        found = self._inputs(node, by_channel(pull.value), gradient, where, count)
        if found is None:
            self._stop(node, "its gradient does not determine all of its inputs")
            return
        if not found.residual <= _NOISY:  # also where it is NaN
            self._stop(node, f"a fraction of {found.residual:.2g} of its gradient is noise")
            return
        self.residuals[self._layer_name(node)] = found.residual
        if found.odd.any() and pull.open is not None and pull.rectifier is not None:
            self._repair(pull, found.odd, pulls(found.value, gradient[found.odd.nonzero()[:, 0]], where))
        self.known.learn(source, by_image(found.value, shape), by_image(found.error, shape))

    def _pooled(self, node: Node, pull: Tensor) -> None:
        """Recover the inputs of a convolution before an average pooling, and the states of the ReLU between them."""
        path = pooled_path(self.graph, node, self.gradients)
        if path is None:
            return
        equations = len(path.layer.sent) * len(path.layer.where)
        if equations < SPARE_STATES * path.layer.count:
            counts = f"{equations} equations for {path.layer.count} inputs per channel"
            self._stop(path.convolution, f"its gradient gives {counts}, too few to find the states of its ReLU as well")
            return
        value, before = self.known[node], self.memory.pooled.get(node)
        if before is None or not torch.equal(before[0], value) or not torch.equal(before[1], pull):
            before = self.memory.pooled[node] = value, pull, path.layer.solve(value, pull)
        found, name = before[2], self._layer_name(path.convolution)
        if found is None or not found.residual <= _NOISY:
            self._stop(path.convolution, "the states of its ReLU, which an average pooling hides, were not found")
            return
        self.residuals[name] = found.residual
        all_ = torch.ones(len(found.states), dtype=torch.bool)
        self.memory.rectifiers.setdefault(path.rectifier, Corrected(all_, found.states, 0))
        shape, told = self.graph.shapes[path.source], self.variances.get(path.convolution.next)
        value = found.value
        if told is not None:  # batch norm hides the size of its inputs
            value = value * (size_factor(told, path.layer.convolved(value).var(1)) or 1.0)
        error = torch.full_like(value, found.residual * float(value.square().mean().sqrt()))
        self.known.learn(path.source, by_image(value, shape), by_image(error, shape))

    def _inputs(self, node: Node, pull: Tensor, gradient: Tensor, where: Tensor, count: int) -> Inputs | None:
        """Return the result of `inputs`, reusing an earlier walk's result for the same pull."""
        before = self.memory.solved.get(node)
        if before is None or not torch.equal(before[0], pull):
            before = pull, 1.0, inputs(pull, gradient, where, count)
            self.memory.solved[node] = before
        assert not isinstance(before[2], SolvedInputs)
        return before[2]

    def _repair(self, pull: Pull, odd: Tensor, told: Tensor | None) -> None:
        """Begin again if rows that do not fit show other states of their ReLU.

        Args:
            pull: derivative that was used.
            odd: (O,) rows that do not fit.
            told: (R, L) their derivative as their own gradient shows it; ``None`` if it does not.
        """
        assert pull.value is not None
        assert pull.open is not None
        assert pull.rectifier is not None
        if told is None:
            return
        rows = odd.nonzero()[:, 0]
        now, opened = (by_channel(t)[rows] for t in (pull.value, pull.open))
        states = torch.where(opened == 0, now != 0, told / opened > 0.5)
        if (states != (now != 0)).any():
            whole = torch.zeros_like(by_channel(pull.open), dtype=torch.bool)
            whole[rows] = states
            self._correct(pull.rectifier, odd, whole)

    def _correct(self, rectifier: Node, rows: Tensor, states: Tensor) -> None:
        """Begin again with other states (C, L) in some rows (C,), unless this ReLU was corrected too often."""
        old, times = self.memory.rectifiers.get(rectifier), 1
        if old is not None:
            rows, states, times = rows | old.rows, torch.where(rows[:, None], states, old.states), old.times + 1
        if times <= _CORRECTIONS:
            self.memory.rectifiers[rectifier] = Corrected(rows, states, times)
            raise _Again

    def _parameter(self, node: Node, place: int) -> str | None:
        """Return the name of the parameter at argument `place` of a node, if it is sent and used only once."""
        name = self.graph.parameter(node, place)
        return name if name in self.gradients else None

    def _stop(self, node: Node, reason: str, pull: Pull | None = None) -> None:
        """Record why a node's inputs were not recovered. If a pull is given, mark their derivatives as unknown."""
        where = self._layer_name(node)
        for source in self.graph.sources(node):
            if pull is None or pull.value is not None or pull.open is not None:  # else the walk had ended before
                self.stops.append((source, f"{where}: {reason}"))
            if pull is not None:
                self._add(source, Pull(None))

    def _layer_name(self, node: Node) -> str:
        names = [self.graph.parameters[n] for n in node.all_input_nodes if n in self.graph.parameters]
        return f"layer '{layer_name(names[0])}'" if names else f"operation '{node.name}'"
