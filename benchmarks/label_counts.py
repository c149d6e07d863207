"""``python -m benchmarks label_counts``: the number of images of each class, inferred from an update.

For each model, mode and plan: the share of updates in which all counts are exact, with its 95 % interval, and the mean
share of images that are counted in a wrong class. Beside ours stand the two simple rules: the bias's gradient with
predictions on white noise (Geng et al. 2021), and with predictions on the ratio of weight to bias (iLRG). Batches are
drawn at random, so their counts are uneven. Nothing is granted; with ``--auxiliary``, the attacker has the set's
images of the other rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.rows import columns, conditions, now
from benchmarks.scenes import REPORTED, TUNED, Scene, available, held_out, play
from medpfl.attacks.label_counts.evidence import rounded
from medpfl.attacks.matching.labels import LastLayer, last_layer, mean_gradient
from medpfl.core.plan import Plan
from medpfl.core.roles import Model
from medpfl.core.threat import ThreatModel
from medpfl.metrics.rates import interval
from medpfl.models import ConvNet, LeNet, ResNet

MODELS: dict[str, Model] = {
    "LeNet": LeNet("idlg"),
    "ConvNet": ConvNet(),
    "ConvNet, batch norm": ConvNet(norm="batch"),
    "ResNet-18": ResNet(18),
}
NEUTRAL = 0.01
"""Mean difference between channels up to which a set counts as gray, as in an audit."""

SIZE, STEPS, IMAGES = 32, 5, 4
"""Pixels per side; local steps, and images in each, under FedAvg."""

RATES = {"LeNet": 0.001}
"""Local learning rate, 0.01 by default. A LeNet's weights are so wide that 0.01 makes its steps chaotic."""

HEAD = columns(
    ("model", -21), ("mode", -6), ("weights", -10), ("update", -14), ("updates", 8), ("exact", 20), ("wrong", 8)
)
HEAD += columns(("noise", 8), ("wrong", 8), ("ratio", 8), ("wrong", 8), ("s", 7))


@dataclass(frozen=True)
class Cell:
    """One line of the table; `batch` is 0 for FedAvg."""

    model: str
    mode: Literal["eval", "train"]
    trained: int
    batch: int

    @property
    def plan(self) -> Plan:
        """The client's plan."""
        if self.batch:
            return Plan(batch_size=self.batch, mode=self.mode)
        rate = RATES.get(self.model, 0.01)
        return Plan(
            "FedAvg",
            batch_size=IMAGES,
            local_images=STEPS * IMAGES,
            learning_rate=rate,
            mode=self.mode,
        )


@dataclass
class Tally:
    """Errors of one rule: the share of an update's images that are counted in a wrong class."""

    errors: list[float] = field(default_factory=list)

    @property
    def exact(self) -> float:
        """The share of updates without an error."""
        return sum(error == 0 for error in self.errors) / max(len(self.errors), 1)

    @property
    def wrong(self) -> float:
        """The mean error."""
        return sum(self.errors) / max(len(self.errors), 1)


def network_of(cell: Cell, name: str, classes: int, seed: int) -> nn.Module:
    """Return the model for a set; if the cell asks for it, after some steps of Adam on the set's even rows."""
    network = MODELS[cell.model].build((3, SIZE, SIZE), classes, seed).eval()
    if not cell.trained:
        return network
    images, labels, _ = held_out(name, 1000, SIZE, tune=True)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    network.train()
    for _ in range(cell.trained):
        chosen = torch.randint(len(images), (16,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(network(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    network.zero_grad()
    return network.eval()


def scenes(cell: Cell, chosen: argparse.Namespace) -> Iterator[Scene]:
    """Yield the updates for each set and draw of the weights."""
    for name in chosen.sets:
        images, labels, classes = held_out(name, 1000, SIZE, chosen.tune)
        other, *_ = held_out(name, 1000, SIZE, not chosen.tune)
        gray = float((images - images.mean(1, keepdim=True)).abs().mean()) < NEUTRAL
        threat = ThreatModel().knowing(gray and not chosen.color)
        for draw in range(chosen.draws):
            seed = (TUNED if chosen.tune else REPORTED) + draw
            network = network_of(cell, name, classes, seed)
            generator = torch.Generator().manual_seed(seed)
            own = [torch.randperm(len(images), generator=generator)[: cell.plan.images] for _ in range(chosen.count)]
            rows = torch.stack(own)
            case = play(network, images[rows], labels[rows], classes, plan=cell.plan, threat=threat)
            yield replace(case, seen=replace(case.seen, auxiliary=other)) if chosen.auxiliary else case


def by_noise(case: Scene) -> Tensor:
    """Return the counts (V, K) from the bias's gradient, with predictions on white noise."""
    weights = case.seen.views[0].weights
    noise = torch.randn(64, *case.seen.image_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        chances = torch.func.functional_call(case.seen.model, {**weights.parameters, **_buffers(case)}, (noise,))
    _, bias = last_layer(case.seen)
    assert bias is not None
    return case.seen.num_images * (chances.softmax(1).mean(0) - mean_gradient(case.seen, bias))


def by_ratio(case: Scene) -> Tensor:
    """Return the counts (V, K), with a class's mean input taken as the ratio of the weight's gradient to the bias's."""
    weight, bias = last_layer(case.seen)
    assert weight is not None
    assert bias is not None
    parameters, total = case.seen.views[0].weights.parameters, case.seen.num_images
    slopes, offsets = mean_gradient(case.seen, weight), mean_gradient(case.seen, bias)
    chances = (slopes / offsets[..., None] @ parameters[weight].T + parameters[bias]).softmax(2)
    system = chances.mT - torch.eye(case.classes)
    whole = torch.cat([system, torch.ones(len(system), 1, case.classes)], 1)
    known = torch.cat([total * offsets, offsets.new_full((len(offsets), 1), total)], 1)
    return (torch.linalg.pinv(whole) @ known[..., None])[..., 0]


def _buffers(case: Scene) -> dict[str, Tensor]:
    kept = dict(case.seen.model.named_buffers())
    return {k: t for k, t in case.seen.views[0].weights.buffers.items() if k in kept}


def ours(case: Scene) -> Tensor:
    """Return the counts (V, K) that the attacks use."""
    labels = LastLayer().infer(case.seen, torch.zeros(2, *case.seen.image_shape))
    assert labels is not None
    return _counts(labels, case.classes)


def _counts(labels: Tensor, classes: int) -> Tensor:
    return torch.nn.functional.one_hot(labels, classes).sum(1).float()


def errors(counts: Tensor, case: Scene) -> list[float]:
    """Return each update's share of images in a wrong class; counts (V, K) are scaled to the batch and rounded."""
    truth = _counts(case.labels, case.classes)
    counts = torch.stack([rounded(own.clamp(min=0), case.labels.shape[1]) for own in counts])
    return ((counts - truth).abs().sum(1) / 2 / case.labels.shape[1]).tolist()


def lines(chosen: argparse.Namespace, go_on: Callable[[], bool] = lambda: True) -> Iterator[str]:
    """Yield the table's lines."""
    yield conditions()
    yield HEAD
    cells = [
        Cell(model, mode, trained, batch)
        for model in chosen.models
        for trained in chosen.trained
        for mode in chosen.modes
        for batch in chosen.batches
        if mode == "eval" or model not in ("LeNet", "ConvNet")  # without batch norm, modes do not differ
    ]
    for cell in cells:
        if not go_on():
            yield f"{cell.model}, {cell.mode}, {cell.batch}: not run: time is up"
            continue
        yield _line(cell, chosen)


def _line(cell: Cell, chosen: argparse.Namespace) -> str:
    tallies, seconds = {rule: Tally() for rule in (ours, by_noise, by_ratio)}, 0.0
    for case in scenes(cell, chosen):
        for rule, tally in tallies.items():
            began = now()
            counts = rule(case)
            seconds += now() - began if rule is ours else 0.0
            tally.errors += errors(counts, case)
    own, count = tallies[ours], len(tallies[ours].errors)
    low, high = interval(round(own.exact * count), count)
    weights = f"{cell.trained} steps" if cell.trained else "untrained"
    update = f"batch of {cell.batch}" if cell.batch else f"{STEPS} steps of {IMAGES}"
    row = f"{cell.model:<21}{cell.mode:<6}{weights:<10}{update:<14}{count:>8}"
    row += f"{f'{own.exact:.2f} [{low:.2f}, {high:.2f}]':>20}{own.wrong:>8.3f}"
    others = "".join(f"{one.exact:>8.2f}{one.wrong:>8.3f}" for one in (tallies[by_noise], tallies[by_ratio]))
    return f"{row}{others}{seconds / max(count, 1):>7.2f}"


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks label_counts", description=__doc__)
    parser.add_argument("--sets", nargs="+", default=available(), help="image sets (default: all on this machine)")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--modes", nargs="+", default=["eval", "train"], choices=["eval", "train"])
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 32, 0], help="images per gradient; 0: FedAvg")
    parser.add_argument("--trained", nargs="+", type=int, default=[0, 20], help="steps of training before the update")
    parser.add_argument("--draws", type=int, default=3, help="draws of the weights per set")
    parser.add_argument("--count", type=int, default=12, help="updates per draw")
    parser.add_argument("--auxiliary", action="store_true", help="the attacker has the images of the other rows")
    parser.add_argument(
        "--color", action="store_true", help="the attacker does not know that the images of a set are gray"
    )
    parser.add_argument("--tune", action="store_true", help="even rows and other weights, for tuning")
    return parser.parse_args(arguments)
