"""``python -m benchmarks small_networks``: what the analytic attacks read through a perceptron and through ConvNet.

For each network, set, mode and batch size: the images that an attack certified, those certified wrongly (SSIM below
0.9), the labels, and the images' SSIM beside that of a gray image. The truth is used for scores only. The attacker
knows whether all images of a set are gray, as in an audit. Batches hold images of odd rows, different in each draw.
Trained networks have seen even rows only.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from benchmarks.rows import columns, conditions, now, rate, scores
from benchmarks.scenes import REPORTED, TUNED, Scene, available, held_out, play, shuffled
from benchmarks.trained import train_until
from medpfl import attacks as attack_parts
from medpfl import models as model_parts
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.roles import Attack, Model
from medpfl.core.spec import build, registry
from medpfl.core.threat import ThreatModel
from medpfl.metrics.pairing import pair
from medpfl.metrics.pixel import SUCCESS

HEAD = columns(("network", -26), ("weights", -11), ("set", -12), ("mode", -7), ("batch", 5), ("", 2), ("attack", -14))
HEAD += columns(("images", 7), ("certified", 11), ("false", 7), ("labels", 8), ("gray", 7), ("SSIM", 7))
HEAD += columns(("ASR [95 %]", 20), ("s", 8))


@dataclass
class Tally:
    """Counts over the updates of one cell.

    Attributes:
        images, certified, false, labels: numbers of images.
        ssim, gray: (M,) scores of the guesses, and of a gray image.
        seconds: of all updates.
        updates: their number.
    """

    images: int = 0
    certified: int = 0
    false: int = 0
    labels: int = 0
    ssim: list[Tensor] = field(default_factory=list)
    gray: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0
    updates: int = 0

    def add(self, scene: Scene, attack: Attack) -> None:
        """Attack all updates of a scene."""
        count, batch = scene.batches.shape[:2]
        began = now()
        found = attack(scene.seen, torch.Generator().manual_seed(0))
        self.seconds += now() - began
        self.updates += count
        self.images += count * batch
        each = scores(found.guesses, scene.batches).view(count, batch)
        self.ssim.append(each.flatten())
        self.gray.append(scores(torch.full_like(scene.batches, 0.5), scene.batches))
        for v, certificate in enumerate(found.certificates or [""] * count):
            self.certified += batch if certificate else 0
            self.false += int((each[v] < SUCCESS).sum()) if certificate else 0
            if found.labels is not None:
                order = pair(found.guesses[v].nan_to_num(0.0).clamp(0, 1), scene.batches[v])
                self.labels += int((found.labels[v][order] == scene.labels[v]).sum())

    def row(self) -> str:
        """Return the counts as a row's right part."""
        score, gray = torch.cat(self.ssim), torch.cat(self.gray)
        counts = f"{self.images:>7}{self.certified:>11}{self.false:>7}{self.labels:>8}"
        return f"{counts}{gray.mean():>7.3f}{score.mean():>7.3f}{rate(score):>20}{self.seconds / self.updates:>8.1f}"


def network_of(chosen: argparse.Namespace, spec: str, weights: str, name: str, draw: int) -> nn.Module:
    """Return a network with fresh weights, or trained on a set's even rows until the loss is below 0.3."""
    images, labels, classes = held_out(name, 1000, chosen.size, tune=True)
    model = build(spec, registry(model_parts), "model")
    assert isinstance(model, Model)
    network = model.build((3, chosen.size, chosen.size), classes, (TUNED if chosen.tune else REPORTED) + draw)
    return train_until(network, images, labels, 0.3, draw) if weights == "trained" else network


def tallied(chosen: argparse.Namespace, cell: tuple[str, str, str, str, int], attack: Attack) -> Tally:
    """Attack the updates of one cell: network, weights, set, mode and batch size."""
    spec, weights, name, mode, batch = cell
    tally = Tally()
    for draw in range(chosen.draws):
        images, labels, classes = held_out(name, 1000, chosen.size, tune=chosen.tune)
        order = shuffled(len(images), batch, (TUNED if chosen.tune else REPORTED) + draw)[: chosen.count]
        plan = Plan(batch_size=batch, mode=mode)  # type: ignore[arg-type]  (the parser allows both modes only)
        network = network_of(chosen, spec, weights, name, draw)
        threat = ThreatModel().knowing(bool((images == images[:, :1]).all()))
        scene = play(network, images[order], labels[order], classes, plan=plan, threat=threat)
        attack.check(scene.seen.model, scene.seen.views[0].plans, scene.seen.image_shape)
        tally.add(scene, attack)
    return tally


def lines(chosen: argparse.Namespace, go_on: Callable[[], bool] = lambda: True) -> Iterator[str]:
    """Yield the table's lines."""
    yield conditions()
    yield HEAD
    cells = [
        (spec, weights, name, mode, batch)
        for spec in chosen.networks
        for weights in chosen.weights
        for name in chosen.sets
        for mode in chosen.modes
        for batch in chosen.batches
    ]
    for cell in cells:
        for text in chosen.attacks:
            attack = build(text, registry(attack_parts), "attack")
            assert isinstance(attack, Attack)
            spec, weights, name, mode, batch = cell
            front = f"{spec:<26}{weights:<11}{name:<12}{mode:<7}{batch:>5}  {type(attack).__name__:<14}"
            if not go_on():
                yield f"{front}: not run: time is up"
                continue
            try:
                yield front + tallied(chosen, cell, attack).row()
            except InputError as error:
                yield f"{front}: {error}"


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks small_networks", description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["MLP()"], help="models, as specs (default: %(default)s)")
    parser.add_argument("--attacks", nargs="+", default=["Separation()"], help="attacks, as specs (%(default)s)")
    parser.add_argument("--sets", nargs="+", default=available(), help="image sets (default: all on this machine)")
    parser.add_argument("--weights", nargs="+", default=["untrained"], choices=["untrained", "trained"])
    parser.add_argument("--modes", nargs="+", default=["train"], choices=["train", "eval"])
    parser.add_argument("--batches", nargs="+", type=int, default=[4, 8], help="images per update")
    parser.add_argument("--size", type=int, default=32, help="pixels per side")
    parser.add_argument("--draws", type=int, default=3, help="draws of the weights")
    parser.add_argument("--count", type=int, default=2, help="updates per draw")
    parser.add_argument("--tune", action="store_true", help="attack images of even rows, under other weights")
    return parser.parse_args(arguments)
