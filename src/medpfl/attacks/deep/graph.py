"""A model as a graph of tensor operations on its images, at given weights."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, functionalize
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

from medpfl.core.drawn_layers import draws
from medpfl.core.errors import InputError
from medpfl.core.types import Tensors, Weights
from medpfl.core.user_code.copies import copied
from medpfl.federated.ready import state_of

__all__ = ["RECTIFIERS", "SHAPES", "Graph", "exact", "graph_of", "layer_name"]

_OPS = torch.ops.aten
RECTIFIERS = {_OPS.relu.default}
SHAPES = {_OPS.view.default, _OPS._unsafe_view.default, _OPS.reshape.default}
_ORDERED = {_OPS.max_pool2d_with_indices.default, operator.getitem} | SHAPES
"""Operations through which a ReLU can be moved: before a maximum or after it, the values are the same."""


@dataclass(frozen=True, eq=False)
class Graph:
    """The operations from the image to the output, all without side effects.

    Attributes:
        image: node for the images (N, C, H, W).
        output: node for the logits.
        nodes: all nodes that depend on the image, the image first, each after its inputs.
        fixed: the other nodes' values, floating-point ones in float64.
        shapes: shapes for those `nodes` that are tensors.
        parameters: the model's parameters by node.
    """

    image: Node
    output: Node
    nodes: tuple[Node, ...]
    fixed: dict[Node, Any]
    shapes: dict[Node, torch.Size]
    parameters: dict[Node, str]

    @property
    def mixes(self) -> bool:
        """True if batch norm in train mode makes the images' values depend on each other."""
        return any(node.target is _OPS.native_batch_norm.default and node.args[5] for node in self.nodes)

    def sources(self, node: Node) -> list[Node]:
        """Return the inputs of a node that depend on the image."""
        return [other for other in node.all_input_nodes if other not in self.fixed]

    def call(self, node: Node, values: dict[Node, Any]) -> Any:
        """Return a node's value, given its inputs' values. Inputs not given are `fixed`."""
        return _call(node, lambda other: values[other] if other in values else self.fixed[other])

    def rectifier(self, node: Node) -> Node | None:
        """Return the ReLU behind a node's values, directly or before maxima and views; ``None`` without one."""
        while node.target in _ORDERED and len(sources := self.sources(node)) == 1:
            (node,) = sources
        return node if node.target in RECTIFIERS else None

    def parameter(self, node: Node, place: int) -> str | None:
        """Return the name of the trained parameter at an argument of a node; ``None`` if it is used elsewhere too."""
        other = node.args[place] if len(node.args) > place else None
        if isinstance(other, Node) and other.target is _OPS.t.default:
            other = other.args[0]
        return self.parameters.get(other) if isinstance(other, Node) and len(other.users) == 1 else None

    def batch_norm(self, convolution: Node) -> Node | None:
        """Return the batch norm behind a convolution; ``None`` if there is none, or another use of its outputs."""
        users = list(convolution.users)
        return users[0] if len(users) == 1 and users[0].target is _OPS.native_batch_norm.default else None

    def normalization(self, node: Node) -> Node | None:
        """Return a batch norm in train mode whose outputs reach a ReLU unchanged but for sums; ``None`` without one."""
        open_ = list(self.sources(node))
        while open_:
            source = open_.pop(0)
            if source.target is _OPS.native_batch_norm.default and source.args[5]:
                return source
            if source.target in (operator.getitem, _OPS.add.Tensor):
                open_ += [other for other in self.sources(source) if other.target not in RECTIFIERS]
        return None

    def after(self, given: Mapping[Node, Tensor]) -> dict[Node, Any]:
        """Return the given nodes' values and those of all nodes that follow from them."""
        values: dict[Node, Any] = dict(given)
        for node in self.nodes:
            sources = self.sources(node)
            if node not in values and sources and all(source in values for source in sources):
                values[node] = self.call(node, values)
        return values

    def passages(self) -> tuple[Node, ...]:
        """Return the nodes through which all paths from the image to the output lead, the last one first."""
        order = {node: place for place, node in enumerate(self.nodes)}
        furthest, found = 0, []
        for place, node in enumerate(self.nodes):
            if place >= furthest:
                found.append(node)
            users = [order[user] for user in node.users if user in order]
            furthest = max([furthest, *users])
        return tuple(reversed(found))

    def needed(self, wanted: Iterable[Node]) -> tuple[Node, ...]:
        """Return the `nodes` that the wanted ones need, including these."""
        found, open_ = set(), list(wanted)
        while open_:
            node = open_.pop()
            if node not in found:
                found.add(node)
                open_ += self.sources(node)
        return tuple(node for node in self.nodes if node in found)

    def value(self, images: Tensor, node: Node) -> Tensor:
        """Return a node's value for images (N, C, H, W), in their dtype, which the fixed values must have too."""
        return self.run(images, self.needed([node]), self.fixed)[node]

    def run(self, image: Tensor, order: Sequence[Node], fixed: dict[Node, Any]) -> dict[Node, Any]:
        """Return the nodes' values, in the order from `needed`."""
        values = {**fixed, self.image: image}
        for node in order:
            if node is not self.image:
                values[node] = self.call(node, values)
        return values


def layer_name(parameter: str) -> str:
    """Return the name of the layer that a parameter belongs to."""
    return parameter.rpartition(".")[0] or parameter


def exact(tensors: Tensors) -> dict[str, Tensor]:
    """Return the same tensors on the CPU, floating-point ones in float64."""
    return {k: t.cpu().double() if t.is_floating_point() else t.cpu() for k, t in tensors.items()}


def graph_of(model: nn.Module, weights: Weights, image_shape: tuple[int, ...], images: int = 1) -> Graph:
    """Return the graph of a prepared model, on the CPU: its use needs float64 and little time.

    Args:
        model: prepared model; its own weights are not used.
        weights: the global model.
        image_shape: (C, H, W).
        images: number of images N.

    Raises:
        InputError: The model's operations depend on more than tensors of fixed shapes, draw at random, or do not depend
            on the image.
    """
    for name, layer in model.named_modules():
        if draws(layer):
            kind = type(layer).__name__
            raise InputError(f"layer '{name}' ({kind}) draws at random: use mode eval, or another attack")
    model = copied(model, forget=True).cpu()
    parameters, rest = exact(weights.parameters), exact(state_of(model, weights.buffers))
    if not parameters:
        raise InputError("the model has no parameter that is trained, so its gradient reveals nothing")
    image = next(iter(parameters.values())).new_full((images, *image_shape), 0.5)

    def forward(own: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, {**own, **rest}, (x,))

    try:
        with torch.no_grad():
            module = make_fx(functionalize(forward))(parameters, image)
    except Exception as error:  # the user's model may raise anything
        raise InputError(
            f"the model's operations cannot be listed ({type(error).__name__}: {str(error)[:80]}...); they must not "
            "depend on the image's content: attack with GradInv"
        ) from error
    module.graph.eliminate_dead_code()
    return _sorted(module, parameters, image)


def _sorted(module: GraphModule, parameters: dict[str, Tensor], image: Tensor) -> Graph:
    """Build the graph from a traced model: compute what does not depend on the image, and keep the other operations."""
    *given, entry = [node for node in module.graph.nodes if node.op == "placeholder"]
    fixed: dict[Node, Any] = dict(zip(given, parameters.values(), strict=True))
    nodes, shapes = [entry], {entry: image.shape}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            fixed[node] = getattr(module, str(node.target))
        elif node.op == "call_function":
            seeded = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
            if seeded and "attention" not in node.name:  # attention has optional dropout; no attack passes it anyway
                raise InputError(f"operation '{node.name}' of the model draws at random: attack with GradInv")
            if all(other in fixed for other in node.all_input_nodes):
                with torch.no_grad():
                    fixed[node] = _call(node, fixed.__getitem__)
                continue
            nodes.append(node)
            shape = getattr(node.meta.get("tensor_meta"), "shape", None)
            if shape is not None:
                shapes[node] = shape
    (output,) = next(node for node in module.graph.nodes if node.op == "output").all_input_nodes
    if output not in shapes:
        raise InputError("the model's output is not a tensor that depends on the image: attack with GradInv")
    return Graph(entry, output, tuple(nodes), fixed, shapes, dict(zip(given, parameters, strict=True)))


def _call(node: Node, value: Callable[[Node], Any]) -> Any:
    assert callable(node.target), f"{node} calls {node.target}"
    args: Any = map_arg(node.args, value)
    kwargs: Any = map_arg(node.kwargs, value)
    return node.target(*args, **kwargs)
