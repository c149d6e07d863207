"""``python -m benchmarks separation``: what Separation reads of batches through ResNet-18, and how exactly.

For each set, draw of the weights and batch: the images that were separated and certified, the labels, the depth and the
error of the walk, recognition by features alone, and the images' SSIM. The truth is used for scores only. Batches hold
images of odd rows, different in each draw. Trained networks have seen even rows only.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from benchmarks.rows import columns, conditions, now, rate, scores
from benchmarks.scenes import REPORTED, Scene, available, held_out, known_images, play, shuffled
from benchmarks.trained import train_until
from medpfl import defenses as parts
from medpfl.attacks import Separation
from medpfl.attacks.deep.backward_walk import peel
from medpfl.attacks.deep.graph import Graph, exact, graph_of
from medpfl.attacks.deep.separated_start import SeparatedStart, separated_start
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.roles import Defense
from medpfl.core.spec import build, registry
from medpfl.core.types import Weights
from medpfl.models import ResNet

_SAME, _READ = 0.99, 1e-3
"""Smallest cosine of a source that is an image's, noise included, and largest relative error of a map that was read."""

HEAD = columns(
    ("weights", -11), ("set", -12), ("mode", -7), ("batch", 5), ("images", 8), ("separated", 11), ("false", 7)
)
HEAD += columns(
    ("labels", 8),
    ("maps", 6),
    ("read", 8),
    ("error", 9),
    ("bounded", 9),
    ("features", 10),
    ("SSIM", 7),
    ("ASR [95 %]", 20),
    ("s", 7),
)


@dataclass
class Tally:
    """Counts over the batches of one cell.

    Attributes:
        images, separated, false, labels, features: numbers of images; `false` counts certified sources of none.
        edges, errors: edge of the earliest maps that were read right, and the largest error of an image's maps there,
            for each batch. A row shows the longest edge, in how many batches it was read, and the largest error.
        bounded: number of batches in which no image's error at the earliest maps is above the bound that is stated, and
            of those for which one is stated.
        ssim: (M,) for each image.
        seconds: for each batch.
    """

    images: int = 0
    separated: int = 0
    false: int = 0
    labels: int = 0
    features: int = 0
    edges: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    bounded: tuple[int, int] = (0, 0)
    ssim: list[Tensor] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def row(self) -> str:
        """Return the counts as a row's right part."""
        score = torch.cat(self.ssim) if self.ssim else torch.zeros(0)
        right = f"{self.images:>8}{self.separated:>11}{self.false:>7}{self.labels:>8}"
        most, error = max(self.edges, default=0), max(self.errors, default=float("nan"))
        read = f"{self.edges.count(most) if most else 0}/{len(self.edges)}"
        bounded = "{}/{}".format(*self.bounded)
        right += f"{most:>6}{read:>8}{error:>9.1e}{bounded:>9}{self.features:>10}"
        told = f"{score.mean():>7.3f}{rate(score):>20}" if len(score) else f"{'-':>7}{'-':>20}"
        return f"{right}{told}{sum(self.seconds) / max(len(self.seconds), 1):>7.1f}"


@dataclass(frozen=True, eq=False)
class Gallery:
    """Known images (G, C, H, W), and the places (V, N) of the attacked ones among them."""

    images: Tensor
    places: Tensor
    features: dict[int, Tensor] = field(default_factory=dict)
    """Normalized values (G, D) of the images by the node's place in the graph."""


def one(scene: Scene, v: int, gallery: Gallery, tally: Tally, pictures: bool) -> None:
    """Attack one update, and add what was read to the tally."""
    view, count = scene.seen.views[0], scene.batches.shape[1]
    tally.images += count
    began = now()
    graph = graph_of(scene.seen.model, view.weights, scene.seen.image_shape, count)
    sent = exact({k: t[v] for k, t in view.update.tensors.items()})
    try:
        begun = separated_start(graph, sent)
    except InputError:
        tally.seconds.append(now() - began)
        tally.edges.append(0)
        return
    read = peel(graph, sent, begun.start)
    tally.seconds.append(now() - began)
    truth = graph.after({graph.image: scene.batches[v].double()})
    order = _order(begun, truth)
    maps = {k: t for k, t in read.known.items() if graph.rectifier(k) and t.ndim == 4}
    errors = {k: float(_error(t, truth[k][order]).max()) for k, t in maps.items()}
    if read.bound is not None:
        held = max(errors[k] for k in maps if k in read.rim(graph)) <= read.bound
        tally.bounded = tally.bounded[0] + held, tally.bounded[1] + 1
    right = [k for k, error in errors.items() if error < _READ]
    deepest = max(right, key=lambda k: (maps[k].shape[-1], -graph.nodes.index(k)), default=None)
    tally.edges.append(maps[deepest].shape[-1] if deepest is not None else 0)
    tally.errors.append(errors[deepest] if deepest is not None else float("nan"))
    tally.separated += int((_error(begun.start.value, truth[begun.start.node][order]) < _READ).sum())
    tally.false += _false(begun, truth[begun.start.node])
    tally.labels += int((begun.start.pull.argmin(1) == scene.labels[v][order]).sum())
    place = deepest if deepest is not None else begun.start.node
    tally.features += int((_nearest(scene, graph, gallery, place, read.known[place]) == gallery.places[v][order]).sum())
    if pictures:
        began = now()
        seen = scene.seen
        alone = type(seen)(seen.model, (_single(view, v),), seen.image_shape, seen.num_classes)
        found = Separation()(alone, torch.Generator().manual_seed(v))
        tally.ssim.append(scores(found.guesses, scene.batches[v : v + 1]))
        tally.seconds[-1] = now() - began


def _single(view, v: int):
    """Return a view of one victim's update."""
    update = view.update
    buffers = None if update.buffers is None else {k: t[v : v + 1] for k, t in update.buffers.items()}
    kept = type(update)({k: t[v : v + 1] for k, t in update.tensors.items()}, update.kind, buffers, update.num_samples)
    return type(view)(view.weights, view.plans, kept)


def _order(begun: SeparatedStart, truth: dict) -> Tensor:
    """Return which image each separated one is, by the cosine of its values."""
    mine, true = (normalize(t.flatten(1), dim=1) for t in (begun.start.value, truth[begun.start.node]))
    return (mine @ true.T).argmax(1)


def _error(value: Tensor, true: Tensor) -> Tensor:
    """Return each image's relative error (N,)."""
    return (value - true).flatten(1).norm(dim=1) / true.flatten(1).norm(dim=1).clamp(min=1e-30)


def _false(begun: SeparatedStart, true: Tensor) -> int:
    """Return the number of certified sources that are no image's inputs at any position."""
    inputs = normalize(true.flatten(2).transpose(1, 2).flatten(0, 1), dim=1)
    return int(((begun.sources.inputs @ inputs.T).amax(1) < _SAME).sum())


def _nearest(scene: Scene, graph: Graph, gallery: Gallery, node, value: Tensor) -> Tensor:
    """Return the gallery image with the features nearest to each image's, by cosine."""
    place = graph.nodes.index(node)
    if place not in gallery.features:
        weights = scene.seen.views[0].weights
        gallery.features[place] = features_of(scene.seen.model, weights, gallery.images, place)
    return (normalize(value.float().flatten(1), dim=1) @ gallery.features[place].T).argmax(1)


def features_of(model: nn.Module, weights: Weights, images: Tensor, place: int) -> Tensor:
    """Return the normalized values (G, D) of images at a node, given by its place; the images enter in halves."""
    halves, found = torch.randperm(len(images), generator=torch.Generator().manual_seed(5)).chunk(2), []
    for rows in halves:
        whole = graph_of(model, weights, tuple(images.shape[1:]), len(rows))
        found.append(whole.value(images[rows].double(), whole.nodes[place]).float())
    return normalize(torch.cat(found)[torch.cat(halves).argsort()].flatten(1), dim=1)


def network_of(weights: str, name: str, draw: int, size: int) -> nn.Module:
    """Return ResNet-18 with fresh weights, or trained on a set's even rows until the loss is below 0.3."""
    images, labels, classes = held_out(name, 1000, size, tune=True)
    network = ResNet(18).build((3, size, size), classes, REPORTED + draw)
    return train_until(network, images, labels, 0.3, draw) if weights == "trained" else network


def lines(chosen: argparse.Namespace, go_on: Callable[[], bool] = lambda: True) -> Iterator[str]:
    """Yield the table's lines."""
    yield conditions()
    yield HEAD
    defense = build(chosen.defense, registry(parts), "defense")
    assert isinstance(defense, Defense)
    for weights in chosen.weights:
        for name in chosen.sets:
            for mode in chosen.modes:
                for batch in chosen.batches:
                    if not go_on():
                        yield f"{weights}, {name}, {mode}, {batch}: not run: time is up"
                        continue
                    tally = Tally()
                    for draw in range(chosen.draws):
                        _draw(chosen, weights, name, mode, batch, draw, defense, tally)
                    yield f"{weights:<11}{name:<12}{mode:<7}{batch:>5}{tally.row()}"


def _draw(chosen, weights: str, name: str, mode: str, batch: int, draw: int, defense: Defense, tally: Tally) -> None:
    images, labels, classes = held_out(name, 1000, chosen.size)
    network = network_of(weights, name, draw, chosen.size)
    order = shuffled(len(images), batch, REPORTED + draw)[: chosen.count]
    plan = Plan(batch_size=batch, mode=mode)  # type: ignore[arg-type]  (the parser allows both modes only)
    scene = play(network, images[order], labels[order], classes, plan=plan, defense=defense)
    gallery = Gallery(known_images(name, chosen.size), order)
    for v in range(len(scene.seen)):
        one(scene, v, gallery, tally, v < chosen.pictures)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks separation", description=__doc__)
    parser.add_argument("--sets", nargs="+", default=available(), help="image sets (default: all on this machine)")
    parser.add_argument("--weights", nargs="+", default=["untrained", "trained"], choices=["untrained", "trained"])
    parser.add_argument("--modes", nargs="+", default=["train", "eval"], choices=["train", "eval"])
    parser.add_argument("--batches", nargs="+", type=int, default=[4, 8], help="images per update")
    parser.add_argument("--size", type=int, default=64, help="pixels per side")
    parser.add_argument("--draws", type=int, default=3, help="draws of the weights")
    parser.add_argument("--count", type=int, default=2, help="batches per draw")
    parser.add_argument("--pictures", type=int, default=1, help="batches per draw whose images are searched for")
    parser.add_argument("--defense", default="NoDefense()", help="the clients' defense, not disclosed")
    return parser.parse_args(arguments)
