"""``python -m benchmarks matching``: known images recognized by the values that Separation reads, and false matches.

The attacker knows 110 to 240 images and computes their values at the earliest layer that is read, with the network's
untouched weights. A victim's values match the known image with the highest cosine. The victims' values are computed,
not read: Separation reads them to a relative error of 1e-5 (``python -m benchmarks separation``). Rows differ in the
known images: the very ones, recompressed or cropped copies, or none of the victims.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from benchmarks.rows import columns, conditions
from benchmarks.scenes import REPORTED, available, held_out, known_images, shuffled
from benchmarks.separation import features_of
from medpfl.attacks.deep.capacity import capacity
from medpfl.attacks.deep.graph import Graph, graph_of
from medpfl.attacks.deep.kernel_systems import LAYERS
from medpfl.core.plan import Plan
from medpfl.core.types import Weights
from medpfl.federated.ready import prepare
from medpfl.metrics.rates import interval
from medpfl.models import ResNet

HEAD = columns(("set", -12), ("known images", -26), ("victims", 8), ("matched", 8), ("share [95 %]", 20))
HEAD += columns(("surely", 8), ("cosine", 8))


def recompressed(images: Tensor, quality: int) -> Tensor:
    """Return images (M, 3, H, W) after JPEG compression of a quality."""
    found = []
    for image in images:
        file = io.BytesIO()
        to_pil_image(image).save(file, "JPEG", quality=quality)
        found.append(pil_to_tensor(Image.open(file)).float() / 255)
    return torch.stack(found)


def cropped(images: Tensor, edge: int) -> Tensor:
    """Return images (M, C, H, W) without `edge` pixels at every side, enlarged again."""
    inner = images[..., edge:-edge, edge:-edge]
    return interpolate(inner, images.shape[2:], mode="bilinear", align_corners=False)


COPIES: dict[str, Callable[[Tensor], Tensor]] = {
    "the victims": lambda images: images,
    "JPEG of quality 75": lambda images: recompressed(images, 75),
    "JPEG of quality 30": lambda images: recompressed(images, 30),
    "1 of 64 pixels cut off": lambda images: cropped(images, 1),
    "3 of 64 pixels cut off": lambda images: cropped(images, 3),
}


def earliest(graph: Graph, model: nn.Module, batch: int) -> int:
    """Return the place of the earliest values that are read of a batch in train mode."""
    name = capacity(model, tuple(graph.shapes[graph.image][1:]), batch, "train").reads
    for node in graph.nodes:
        if node.target in LAYERS and graph.parameter(node, LAYERS[node.target].weight) == f"{name}.weight":
            return graph.nodes.index(graph.sources(node)[0])
    raise AssertionError(name)


def lines(chosen: argparse.Namespace, go_on: Callable[[], bool] = lambda: True) -> Iterator[str]:
    """Yield the table's lines."""
    yield conditions()
    yield HEAD
    for name in chosen.sets:
        if not go_on():
            yield f"{name}: not run: time is up"
            continue
        rows: dict[str, list[Tensor]] = {}
        for draw in range(chosen.draws):
            for kind, part in _draw(chosen, name, draw):
                rows.setdefault(kind, []).append(part)
        absent = torch.cat(rows["none of the victims"])[:, 0].max()
        for kind, parts in rows.items():
            cosine, right = torch.cat(parts).T
            hits, surely = int(right.sum()), int((right.bool() & (cosine > absent)).sum())
            low, high = interval(hits, len(right))
            share = f"{hits / len(right):.2f} [{low:.2f}, {high:.2f}]"
            yield f"{name:<12}{kind:<26}{len(right):>8}{hits:>8}{share:>20}{surely:>8}{cosine.median():>8.3f}"


def _draw(chosen: argparse.Namespace, name: str, draw: int) -> Iterator[tuple[str, Tensor]]:
    """Yield a kind of known images, with each victim's highest cosine and whether it is the right one (M, 2)."""
    images, _, classes = held_out(name, 1000, chosen.size)
    model = prepare(ResNet(18).build((3, chosen.size, chosen.size), classes, REPORTED + draw), Plan(batch_size=2))
    weights, shape = Weights.of(model), tuple(images.shape[1:])
    graph = graph_of(model, weights, shape, chosen.batch)
    place = earliest(graph, model, chosen.batch)
    order = shuffled(len(images), chosen.batch, REPORTED + draw)[: chosen.count]
    read = [graph.value(images[own].double(), graph.nodes[place]) for own in order]
    values, places = normalize(torch.cat(read).float().flatten(1), dim=1), order.flatten()
    known = known_images(name, chosen.size)
    for kind, copied in COPIES.items():
        cosines = values @ features_of(model, weights, copied(known), place).T
        yield kind, torch.stack([cosines.amax(1), (cosines.argmax(1) == places).float()], 1)
        if kind == "the victims":
            without = cosines.scatter(1, places[:, None], -1.0)
            yield "none of the victims", torch.stack([without.amax(1), torch.zeros(len(values))], 1)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks matching", description=__doc__)
    parser.add_argument("--sets", nargs="+", default=available(), help="image sets (default: all on this machine)")
    parser.add_argument("--batch", type=int, default=8, help="images per update")
    parser.add_argument("--size", type=int, default=64, help="pixels per side")
    parser.add_argument("--draws", type=int, default=3, help="draws of the weights")
    parser.add_argument("--count", type=int, default=5, help="updates per draw")
    return parser.parse_args(arguments)
