"""``python -m benchmarks local_steps``: what Separation reads of FedAvg updates of several local steps.

For each set and draw of the weights: the images that were separated, those that were assigned to the right step, the
labels, and the images recognized among 110 to 240 known ones by the values at the entrance. The attacker knows neither
the weights at later steps nor a batch's statistics. It computes the known images' values at weights between the first
and the last ones, and takes the nearest. Then it exchanges single images of each batch as long as the values of the
whole batch, computed together, come nearer to those that were read.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from benchmarks.rows import columns, conditions, now
from benchmarks.scenes import REPORTED, available, held_out, known_images, shuffled
from benchmarks.separation import features_of
from medpfl.attacks.deep.graph import Graph, exact, graph_of
from medpfl.attacks.deep.separated_start import separated_start
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.types import Batch, Tensors, Weights
from medpfl.federated.local import local_update
from medpfl.federated.ready import prepare
from medpfl.models import ResNet

_SAME = 0.9999
"""Smallest cosine of values that are the same."""

_CANDIDATES, _SWEEPS = 16, 2
"""Known images that are tried for each one of a batch, and number of times that all are exchanged."""

HEAD = columns(("set", -12), ("mode", -7), ("batch", 5), ("steps", 6), ("rate", 8), ("images", 8), ("separated", 11))
HEAD += columns(("in step", 9), ("labels", 8), ("features", 10), ("s", 7))


@dataclass
class Tally:
    """Numbers of images over the updates of one cell, and each update's seconds."""

    images: int = 0
    separated: int = 0
    grouped: int = 0
    labels: int = 0
    features: int = 0
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Case:
    """A client's update of several steps, with images (N, C, H, W) in the order in which it used them."""

    model: nn.Module
    weights: Weights
    plan: Plan
    batch: Batch
    moved: Tensors

    def graph(self) -> Graph:
        """Return the graph for the images that one gradient mixes."""
        images = self.plan.batch_size if self.plan.mode == "train" else self.plan.images
        return graph_of(self.model, self.weights, tuple(self.batch.images.shape[1:]), images)

    def between(self, share: float) -> Weights:
        """Return the weights at a share of the way from the first to the last ones."""
        moved = {k: p + share * self.moved[k] for k, p in self.weights.parameters.items()}
        return Weights(moved, self.weights.buffers)

    def values(self, place: int) -> Tensor:
        """Return the images' values (N, C, H, W) at a node, each at the weights of its step."""
        size, weights, found = self.plan.batch_size, self.weights, []
        alone = replace(self.plan, local_images=None)
        for images, labels in zip(self.batch.images.split(size), self.batch.labels.split(size), strict=True):
            graph = graph_of(self.model, weights, tuple(images.shape[1:]), size)
            found.append(graph.value(images.double(), graph.nodes[place]))
            moved = local_update(self.model, Batch(images, labels), alone, weights).tensors
            weights = Weights({k: p + moved[k] for k, p in weights.parameters.items()}, weights.buffers)
        return torch.cat(found)


def one(case: Case, known: Tensor, places: Tensor, tally: Tally) -> None:
    """Attack one update, and add what was read to the tally.

    Args:
        case: the update.
        known: (G, C, H, W) known images.
        places: (N,) places of the update's images among the known ones.
        tally: the counts.
    """
    plan = case.plan
    tally.images += plan.images
    began = now()
    graph, batches = case.graph(), plan.steps if plan.mode == "train" else 1
    try:
        begun = separated_start(graph, exact({k: -t for k, t in case.moved.items()}), batches, moved=True)
    except InputError:
        return
    finally:
        tally.seconds.append(now() - began)
    values = normalize(torch.cat([start.value for start in begun.starts]).flatten(1), dim=1)
    place = graph.nodes.index(begun.start.node)
    cosines = values @ normalize(case.values(place).flatten(1), dim=1).T
    order = cosines.argmax(1)
    same = cosines.amax(1) > _SAME
    tally.separated += int(same.sum())
    if batches > 1:
        steps = (order // plan.batch_size).view(batches, -1)
        tally.grouped += int((steps == steps[:, :1]).all(1).sum()) * plan.batch_size
    pulls = torch.cat([start.pull for start in begun.starts])
    tally.labels += int((same & (pulls.argmin(1) == case.batch.labels[order])).sum())
    between = [case.between(step / plan.steps) for step in range(plan.steps + 1)]
    features = [features_of(case.model, weights, known, place) for weights in between]
    groups = values.float().split(plan.batch_size)
    nearest = torch.cat([_recognized(case, own, known, features, between, place) for own in groups])
    tally.features += int((same & (nearest == places[order])).sum())


def _recognized(
    case: Case, values: Tensor, known: Tensor, features: list[Tensor], between: list[Weights], place: int
) -> Tensor:
    """Return the places (N,) of known images whose values, computed together, are nearest to those of a batch.

    Args:
        case: the update.
        values: (N, D) the batch's normalized values.
        known: (G, C, H, W) known images.
        features: normalized values (G, D) of the known images at each of the weights.
        between: these weights.
        place: the node's place in the graph.
    """
    first = torch.stack([values @ one.T for one in features]).amax(0)
    chosen, candidates = first.argmax(1), first.topk(_CANDIDATES, dim=1).indices
    if case.plan.mode == "eval":
        return chosen
    graphs = [graph_of(case.model, weights, tuple(known.shape[1:]), len(values)) for weights in between]

    def near(places: Tensor, graph: Graph) -> float:
        own = graph.value(known[places].double(), graph.nodes[place])
        return float((normalize(own.float().flatten(1), dim=1) * values).sum())

    for _ in range(_SWEEPS):
        graph = max(graphs, key=lambda one: near(chosen, one))
        for i in range(len(values)):
            tried = [torch.cat([chosen[:i], other[None], chosen[i + 1 :]]) for other in candidates[i]]
            chosen = max(tried, key=lambda places: near(places, graph))
    return chosen


def lines(chosen: argparse.Namespace, go_on: Callable[[], bool] = lambda: True) -> Iterator[str]:
    """Yield the table's lines."""
    yield conditions()
    yield HEAD
    for name in chosen.sets:
        for mode in chosen.modes:
            for steps in chosen.steps:
                if not go_on():
                    yield f"{name}, {mode}, {steps}: not run: time is up"
                    continue
                tally = Tally()
                for draw in range(chosen.draws):
                    _draw(chosen, name, mode, steps, draw, tally)
                grouped = f"{tally.grouped:>9}" if mode == "train" else f"{'-':>9}"
                row = f"{name:<12}{mode:<7}{chosen.batch:>5}{steps:>6}{chosen.rate:>8g}{tally.images:>8}"
                row += f"{tally.separated:>11}{grouped}{tally.labels:>8}{tally.features:>10}"
                yield f"{row}{sum(tally.seconds) / max(len(tally.seconds), 1):>7.1f}"


def _draw(chosen: argparse.Namespace, name: str, mode: str, steps: int, draw: int, tally: Tally) -> None:
    images, labels, classes = held_out(name, 1000, chosen.size)
    whole = chosen.batch * steps
    plan = Plan("FedAvg", batch_size=chosen.batch, local_images=whole, learning_rate=chosen.rate, mode=mode)  # type: ignore[arg-type]  (as in separation)
    network = prepare(ResNet(18).build((3, chosen.size, chosen.size), classes, REPORTED + draw), plan)
    weights = Weights.of(network)
    known = known_images(name, chosen.size)
    for own in shuffled(len(images), whole, REPORTED + draw)[: chosen.count]:
        batch = Batch(images[own], labels[own])
        moved = local_update(network, batch, plan, weights).tensors
        one(Case(network, weights, plan, batch, moved), known, own, tally)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks local_steps", description=__doc__)
    parser.add_argument("--sets", nargs="+", default=available(), help="image sets (default: all on this machine)")
    parser.add_argument("--modes", nargs="+", default=["train", "eval"], choices=["train", "eval"])
    parser.add_argument("--batch", type=int, default=4, help="images per step")
    parser.add_argument("--steps", nargs="+", type=int, default=[2, 5], help="local steps")
    parser.add_argument("--rate", type=float, default=0.01, help="local learning rate")
    parser.add_argument("--size", type=int, default=64, help="pixels per side")
    parser.add_argument("--draws", type=int, default=3, help="draws of the weights")
    parser.add_argument("--count", type=int, default=1, help="updates per draw")
    return parser.parse_args(arguments)
