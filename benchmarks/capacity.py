"""``python -m benchmarks capacity``: compare how far `Separation` can read by count with how far it does read.

Each row is a small network with random weights and a batch of random images. `capacity` predicts from shapes where the
images separate and the earliest convolution whose inputs can be read. Then the images are separated and the walk is
run. An input counts as read if every image's values are within 0.1 % of the true ones, up to the common factor that
batch norm hides in train mode.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional

from benchmarks.rows import columns, conditions, now
from medpfl.attacks.deep.backward_walk import peel
from medpfl.attacks.deep.capacity import capacity
from medpfl.attacks.deep.graph import Graph, exact, graph_of, layer_name
from medpfl.attacks.deep.kernel_systems import LAYERS
from medpfl.attacks.deep.separated_start import separated_start
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.types import Batch, Weights
from medpfl.federated.local import local_update
from medpfl.federated.ready import prepare

CLASSES, CHANNELS = 3, 1
READ = 1e-3
"""Largest relative error of a value that counts as read."""

_COARSE = 4
"""Side of the random patterns that are enlarged to images: noise alone looks the same to every filter."""

_ACTIVATIONS = {"": nn.ReLU, "g": nn.GELU, "t": nn.Tanh}
_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "biased batch": nn.BatchNorm2d,
    "group": lambda width: nn.GroupNorm(4, width),
    "biased group": lambda width: nn.GroupNorm(4, width),
    "none": lambda _: nn.Identity(),
}


@dataclass(frozen=True)
class Case:
    """A network and a batch.

    Attributes:
        parts: the network's parts: ``c32s2`` is a 3 x 3 convolution with 32 outputs and stride 2, its norm and a ReLU
            (``g`` behind it: GELU; ``t``: tanh); ``p32`` the same with a 1 x 1 convolution; ``b32s2`` a residual block;
            ``m`` and ``a`` a maximum and an average over 2 x 2 positions; ``f32`` a linear layer over all positions and
            a ReLU. Without one, an average over positions follows. A linear layer ends it.
        norm: ``"batch"``, ``"biased batch"`` (behind convolutions with a bias), ``"group"`` or ``"none"``.
        side: height and width of the images in pixels.
        mode: the client's mode.
        images: batch size.
    """

    parts: str
    norm: str
    side: int
    mode: Literal["train", "eval"]
    images: int


_PARTS = (
    ("c64s2 c128s2 c128", "batch"),
    ("c64s2 b64 b128s2 b128", "batch"),
    ("c16 c96s2 b128s2 b128", "batch"),
    ("c32 c64s2 c128s2 c128", "batch"),
    ("c32 c72s2 c128s2 c128", "batch"),
    ("c64 p64 c96s2 b128s2 b128", "batch"),
    ("c48 m c96 m c128 c128", "batch"),
    ("c48 a c96 a c128 c128", "batch"),
    ("c48 c64s2 c128s2 c128", "biased batch"),
    ("c48 c64s2 c128s2 c128", "group"),
    ("c48 c64s2 c128s2 c128", "biased group"),
    ("c32 c64s2 c128s2 c128", "none"),
    ("c48t c64s2 c128s2 c128", "none"),
    ("c48g c64s2 c128s2 c128", "none"),
    ("c64g c96s2g c96s2g c96g", "none"),
    ("c16s2 c32s2 b32", "batch"),
    ("c96s2 c96s2 c96", "batch"),
    ("p64 c64s2 c128s2 c128", "batch"),
    ("c24s2 c48s2 c96", "none"),
    ("f256 f192", "none"),
    ("f512 f256 f128", "none"),
    ("f256", "none"),
    ("c32 c64s2 f256", "none"),
    ("c32 c64s2 f256 f128", "none"),
    ("c32 m c64 m f256 f128", "none"),
    ("c32 a c64 a f256 f128", "none"),
    ("c48t c64s2 f256 f128", "none"),
    ("c32g c64s2g f256 f192", "none"),
    ("c64s2 c64s2 f256", "batch"),
    ("b64s2 b64s2 f256 f128", "batch"),
)
"""Parts and norm of each network; every network gets both modes and two of the batch sizes."""

_BATCHES = ((1, 4), (2, 8), (3, 5))

CASES = tuple(
    Case(parts, norm, 8, mode, images)
    for k, (parts, norm) in enumerate(_PARTS)
    for mode, sizes in zip(("train", "eval"), (_BATCHES[k % 3], _BATCHES[(k + 1) % 3]), strict=True)
    for images in sizes
)


class Standardized(nn.Module):
    """Images with a mean of about 0 and a deviation of about 1."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5) / 0.2


class Block(nn.Module):
    """Two 3 x 3 convolutions with a shortcut."""

    def __init__(self, width: int, out: int, stride: int, norm: str) -> None:
        super().__init__()
        self.first, self.second = _convolution(width, out, 3, stride, norm), _convolution(out, out, 3, 1, norm)
        plain = width == out and stride == 1
        self.skip = nn.Identity() if plain else _convolution(width, out, 1, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.skip(x) + self.second(functional.relu(self.first(x))))


def _convolution(width: int, out: int, kernel: int, stride: int, norm: str) -> nn.Sequential:
    bias = norm not in ("batch", "group")
    return nn.Sequential(nn.Conv2d(width, out, kernel, stride, kernel // 2, bias=bias), _NORMS[norm](out))


def network(parts: str, norm: str, side: int = 8) -> nn.Module:
    """Return an untrained network from the parts of a `Case`. Batch norms have random statistics and parameters."""
    layers: list[nn.Module] = []
    width = CHANNELS
    for part in parts.split():
        if part in ("m", "a"):
            layers.append(nn.MaxPool2d(2) if part == "m" else nn.AvgPool2d(2))
            continue
        kind, words = part[0], part[1:].rstrip("gt")
        if kind == "f":
            before = nn.Sequential(Standardized(), *layers)(torch.zeros(2, CHANNELS, side, side))
            layers.append(nn.Sequential(nn.Flatten(), nn.Linear(before[0].numel(), int(words)), nn.ReLU()))
            width = int(words)
            continue
        out, stride = (int(word) for word in (words if "s" in words else f"{words}s1").split("s"))
        if kind == "b":
            layers.append(Block(width, out, stride, norm))
        else:
            layer = _convolution(width, out, {"c": 3, "p": 1}[kind], stride, norm)
            layers.append(layer.append(_ACTIVATIONS[part[len(words) + 1 :]]()))
        width = out
    end = [] if any(part[0] == "f" for part in parts.split()) else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    made = nn.Sequential(Standardized(), *layers, *end, nn.Linear(width, CLASSES))
    for layer in made.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in")
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.3, 0.3)
            nn.init.uniform_(layer.running_mean, -0.3, 0.3)  # pyright: ignore[reportArgumentType]
            nn.init.uniform_(layer.running_var, 0.5, 2.0)  # pyright: ignore[reportArgumentType]
    return made


@dataclass(frozen=True)
class Outcome:
    """Where images were separated, and the earliest layer whose inputs were read; ``"-"`` for none."""

    separates: str
    reads: str


NOTHING = Outcome("-", "-")

HEAD = columns(("network", -28), ("norm", -14), ("mode", -7), ("images", 6), ("", 2), ("count: at", -12))
HEAD += columns(("down to", -12), ("read: at", -12), ("down to", -12), ("prediction", -14), ("s", 5))


def measured(case: Case, made: nn.Module, seed: int) -> Outcome:
    """Separate a batch of random images, walk, and compare with the true values."""
    plan = Plan(batch_size=case.images, mode=case.mode)
    shape = (CHANNELS, case.side, case.side)
    ready, generator = prepare(made, plan), torch.Generator().manual_seed(seed)
    coarse = torch.rand(case.images, CHANNELS, _COARSE, _COARSE, generator=generator)
    images = functional.interpolate(coarse, shape[1:], mode="bilinear")
    labels = torch.randint(CLASSES, (case.images,), generator=generator)
    weights = Weights.of(ready)
    try:
        sent = exact(local_update(ready, Batch(images, labels), plan, weights).tensors)
        graph = graph_of(ready, weights, shape, case.images)
        begun = separated_start(graph, sent)
    except (InputError, ValueError):  # batch norm raises the latter for a single value
        return NOTHING
    truth = graph.after({graph.image: images.double()})
    mine, true = (functional.normalize(t.flatten(1), dim=1) for t in (begun.start.value, truth[begun.start.node]))
    order = (mine @ true.T).argmax(1)
    if len(set(order.tolist())) < case.images:
        return NOTHING
    walk, hidden = peel(graph, sent, begun.start), case.mode == "train"
    read = {node for node, value in walk.known.items() if _error(value, truth[node][order], hidden) < READ}
    return Outcome(layer_name(begun.entrance.name), _earliest(graph, read)) if begun.start.node in read else NOTHING


def _error(value: Tensor, true: Tensor, hidden: bool) -> float:
    """Return the largest relative error of an image's values; up to a common factor if batch norm hides it."""
    factor = (value * true).sum() / value.square().sum() if hidden else 1.0
    rest = (value * factor - true).flatten(1).norm(dim=1) / true.flatten(1).norm(dim=1)
    return float(rest.max())


def _earliest(graph: Graph, known: set[Node]) -> str:
    """Return the earliest layer whose inputs are known."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    found = []
    for node in graph.nodes:
        if node.target in LAYERS and graph.sources(node)[0] in known:
            name = graph.parameter(node, LAYERS[node.target].weight)
            found.append((order[graph.sources(node)[0]], order[node], name))
    return layer_name(min(found)[2]) if found else "-"


def predicted(case: Case, made: nn.Module) -> tuple[Outcome, bool]:
    """Return what `capacity` expects, and whether the plain total of equations would expect more."""
    count = capacity(made, (CHANNELS, case.side, case.side), case.images, case.mode)
    factor = 1.1 if case.mode == "train" and "batch" in case.norm else 1.0
    total = any(not one.read and one.equations >= factor * one.unknowns for one in count.layers)
    return Outcome(count.separates or "-", count.reads or "-"), total


def lines(chosen: argparse.Namespace, go_on: Callable[[], bool] = lambda: True) -> Iterator[str]:
    """Yield the table's lines. Once `go_on` returns False, the remaining rows are named and skipped."""
    yield conditions()
    yield HEAD
    right = further = unseparated = more = ran = 0
    for case in chosen.cases:
        front = f"{case.parts:<28}{case.norm:<14}{case.mode:<7}{case.images:>6}  "
        if not go_on():
            yield f"{front}not run: time is up"
            continue
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(chosen.seed)
            made = network(case.parts, case.norm, case.side)
        expected, total = predicted(case, made)
        began = now()
        found = measured(case, made, chosen.seed)
        ran, right, more = ran + 1, right + (found == expected), more + total
        missed = found == NOTHING and expected != NOTHING
        unseparated, further = unseparated + missed, further + (found != NOTHING and expected == NOTHING)
        verdict = "right" if found == expected else "not separated" if missed else "wrong"
        cells = "".join(f"{one:<12}" for one in (expected.separates, expected.reads, found.separates, found.reads))
        yield f"{front}{cells}{verdict:<14}{now() - began:>5.1f}"
    yield (
        f"right: {right} of {ran}; {unseparated} not separated although the count allows it; {further} separated "
        f"against the count; in {more}, the total of equations would suffice for a layer that cannot be read"
    )


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks capacity", description=__doc__)
    parser.add_argument("--cases", type=int, default=len(CASES), help="number of cases, the first ones (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed for weights, images and labels (%(default)s)")
    chosen = parser.parse_args(arguments)
    chosen.cases = CASES[: chosen.cases]
    return chosen
