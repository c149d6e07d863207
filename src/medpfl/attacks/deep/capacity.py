"""The reach of `Separation` by count: where images separate and how far the walk goes, from shapes alone.

At a convolution, the walk solves linear equations, one per output channel and kernel weight, for the inputs of one
channel at all positions of all images. An equation holds only the positions that its kernel weight meets. With a
stride, some positions meet a single weight, so the equations can be too few for these although there are enough in
all. The count therefore assigns every position to a weight that meets it, and no weight gets more positions than there
are output channels. It exists unless some positions cannot be determined, whatever the values are.

The rules follow `medpfl.attacks.deep.separated_start` and `medpfl.attacks.deep.backward_walk` operation by
operation, with "known" in place of values. Values may still prevent what the count allows: too few zeros among the
inputs, noise, or equations that nearly depend on each other. With about as many equations as unknowns, a layer may be
read or not (``python -m benchmarks capacity``).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import nn

from medpfl.attacks.deep.counted_walk import TRACED, CountedWalk, LayerCount, Limit
from medpfl.attacks.deep.entrances import MOVED, NO_ENTRANCE, NO_FACTORS, Entrance, entrances
from medpfl.attacks.deep.graph import Graph, graph_of, layer_name
from medpfl.attacks.deep.kernel_systems import LAYERS
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.types import Weights
from medpfl.federated.ready import prepare

__all__ = ["Capacity", "LayerCount", "capacity", "capacity_of", "traced_graph"]

_OPS = torch.ops.aten


@dataclass(frozen=True)
class Capacity:
    """The reach of `Separation` for a batch, by count.

    Attributes:
        images: batch size.
        mode: ``"train"`` or ``"eval"``.
        separates: last layer at which the images can be told apart; ``None`` if there is none.
        most: largest batch that some layer can separate; 0 if none separates any.
        layers: convolutions before `separates` that the walk meets, last first.
        reads: earliest convolution whose inputs can be read; ``None`` if nothing separates.
        stops: layer or operation before which nothing can be read; ``""`` if the images themselves can be read, or if
            nothing separates.
        why: reason for the stop, or why the images cannot be separated; ``""`` if the images themselves can be read.
        limited: ``"count"`` if the gradient has too few equations, so that more output channels or fewer images would
            take the attack further; ``"other"`` if an operation or a limit of the attack stops it; ``""`` if nothing
            does.
    """

    images: int
    mode: str
    separates: str | None
    most: int
    layers: tuple[LayerCount, ...]
    reads: str | None
    stops: str
    why: str
    limited: Limit

    @property
    def applies(self) -> bool:
        """True if `Separation` can tell the images of such a batch apart."""
        return self.separates is not None


def traced_graph(model: nn.Module, image_shape: tuple[int, ...], mode: Literal["train", "eval"]) -> Graph:
    """Return the graph that `capacity_of` counts in.

    Args:
        model: the model; neither its mode nor its weights matter.
        image_shape: (C, H, W).
        mode: mode of batch norm and dropout at the client.

    Raises:
        InputError: the model's operations cannot be listed.
    """
    ready = prepare(model, Plan(batch_size=TRACED, mode=mode))
    return graph_of(ready, Weights.of(ready), image_shape, TRACED)


def capacity(
    model: nn.Module,
    image_shape: tuple[int, ...],
    images: int,
    mode: Literal["train", "eval"] = "train",
    moved: bool = False,
) -> Capacity:
    """Return how far `Separation` can read a batch. Only shapes count: no image is needed, and nothing is solved.

    Args:
        model: the model; neither its mode nor its weights matter.
        image_shape: (C, H, W).
        images: batch size, at least 1.
        mode: mode of batch norm and dropout at the client.
        moved: True if the update has several local steps, so that some gradients are taken at other weights.

    Raises:
        InputError: the model's operations cannot be listed, or there are no images.
    """
    return capacity_of(traced_graph(model, image_shape, mode), images, mode, moved)


def capacity_of(graph: Graph, images: int, mode: str = "train", moved: bool = False) -> Capacity:
    """Return the same as `capacity` for a graph from `traced_graph`, which serves all batch sizes.

    Raises:
        InputError: there are no images.
    """
    if images < 1:
        raise InputError(f"a batch has at least one image, not {images}")
    start, most, why = _entrance(graph, images, moved)
    if start is None:
        limited: Limit = "count" if most else "other"
        return Capacity(images, mode, None, most, (), None, "", why, limited)
    walk = CountedWalk(graph, images, start)
    stop = walk.stop()
    return Capacity(
        images,
        mode,
        layer_name(start.name),
        most,
        walk.layers(),
        walk.earliest(),
        stop.where if stop else "",
        stop.why if stop else "",
        stop.limited if stop else "",
    )


def _entrance(graph: Graph, images: int, moved: bool) -> tuple[Entrance | None, int, str]:
    """Return the last convolution that separates the images, the most that any can, and why none does."""
    if len(graph.shapes[graph.output]) != 2:
        return None, 0, "the model gives a class for every pixel"
    if graph.output.target is not _OPS.addmm.default:
        return None, 0, "the model does not end in a linear layer"
    if why := _too_few(graph, images):
        return None, 0, why
    found, reasons = [], []
    for entrance in entrances(graph):
        if moved and entrance.switch is not None:
            reasons.append(f"{layer_name(entrance.name)}: {MOVED}")
        elif why := _unusable(graph, entrance):
            reasons.append(f"{layer_name(entrance.name)}: {why}")
        else:
            found.append((entrance, entrance.most(graph)))
    if not found:
        return None, 0, "; ".join(reasons) or NO_ENTRANCE
    most = max(count for _, count in found)
    for entrance, count in found:
        if images <= count:
            return entrance, most, ""
    return None, most, f"at most {most} images can be separated"


def _too_few(graph: Graph, images: int) -> str:
    """Return the reason if a batch norm in train mode gets one value per channel, else ``""``."""
    for node in graph.nodes:
        if node.target is _OPS.native_batch_norm.default and node.args[5]:
            shape = graph.shapes[graph.sources(node)[0]]
            if shape[0] == TRACED and images * prod(shape) == TRACED * shape[1]:
                return "batch norm in train mode gets a single value per channel"
    return ""


def _unusable(graph: Graph, entrance: Entrance) -> str:
    """Return why no image can be read at an entrance; ``""`` if one can."""
    normal = graph.batch_norm(entrance.layer)
    own = graph.parameter(entrance.layer, LAYERS[entrance.layer.target].bias)
    if own is None and (normal is None or graph.parameter(normal, 2) is None):
        return NO_FACTORS
    if not entrance.most(graph):
        return f"its {graph.shapes[entrance.layer][1]} outputs are too few to tell images apart"
    return ""
