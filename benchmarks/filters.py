"""``python -m benchmarks filters``: measure what shipped filters change in an update, and what attacks then find.

The update is the weight difference after one step of LeNet on one of the embedded images. The first table compares
updates, without an attack. The second one is an audit of such updates. docs/defenses.md has the last results.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

import medpfl
from medpfl.core.plan import Plan
from medpfl.core.roles import Defense
from medpfl.core.types import Batch, Update, Weights
from medpfl.data import Samples
from medpfl.defenses import Clipping, LocalDP, PercentilePrivacy, SVTPrivacy
from medpfl.federated.local import local_update
from medpfl.federated.ready import prepare
from medpfl.judging.types import Cell
from medpfl.models import LeNet

SHIPPED = LocalDP(1.0, 1e-4, 10.0)
"""Settings that one product ships."""

STOCK = (PercentilePrivacy(), SVTPrivacy(), SHIPPED)
"""The filters that are attacked, with the arguments that they ship with."""


def updates(rate: float, images: int) -> list[Update]:
    """Return the weight difference of each image."""
    data, plan = Samples().load(), Plan("FedAvg", learning_rate=rate)
    model = LeNet("idlg").build(data.shape, len(data.classes), 0)
    ready, weights = prepare(model, plan), Weights.of(model)
    each = [Batch(data.images[i : i + 1], data.labels[i : i + 1]) for i in range(images)]
    return [local_update(ready, batch, plan, weights) for batch in each]


def flat(update: Update) -> Tensor:
    """Return all values of an update (values,)."""
    return torch.cat([tensor.double().flatten() for tensor in update.tensors.values()])


def sent(defense: Defense, update: Update) -> Tensor:
    """Return all values of the defended update (values,)."""
    return flat(defense.update(update, defense.init(), torch.Generator().manual_seed(0))[0])


def lines(given: argparse.Namespace, goes_on: Callable[[], bool] = lambda: True) -> Iterator[str]:
    """Yield the rows of both tables."""
    yield from changes(given, goes_on)
    yield from verdicts(given, goes_on)


def changes(given: argparse.Namespace, goes_on: Callable[[], bool]) -> Iterator[str]:
    """Yield a row for each learning rate."""
    yield "| learning rate | `PercentilePrivacy` changes the update by | `SVTPrivacy`: cosine, values sent | noise |"
    for rate in given.rates:
        if not goes_on():
            yield "no time left"
            return
        raw = updates(rate, given.images)
        moved = [float((sent(PercentilePrivacy(), one) - flat(one)).norm() / flat(one).norm()) for one in raw]
        chosen = [sent(SVTPrivacy(), one) for one in raw]
        cosines = [float(torch.cosine_similarity(own, flat(one), 0)) for own, one in zip(chosen, raw, strict=True)]
        share = sum(float((own != 0).double().mean()) for own in chosen) / len(chosen)
        clipped = [sent(Clipping(SHIPPED.clipping_norm), one) for one in raw]
        noise = [float((sent(SHIPPED, one) - own).norm() / own.norm()) for one, own in zip(raw, clipped, strict=True)]
        yield (
            f"| {rate} | {min(moved):.2%} to {max(moved):.2%} | {min(cosines):.2f} to {max(cosines):.2f}, "
            f"{share:.0%} | {min(noise):.1%} to {max(noise):.1%} |"
        )


def verdicts(given: argparse.Namespace, goes_on: Callable[[], bool]) -> Iterator[str]:
    """Yield a row for each attack and filter: naive and adaptive success, and the verdict of the audit."""
    if not given.attacks:
        return
    yield ""
    yield "| attack | defense | reconstructed, SSIM: naive | adaptive | re-identified (adaptive) | verdict |"
    for attack in given.attacks:
        if not goes_on():
            yield "no time left"
            return
        report = medpfl.audit(
            LeNet("idlg"),
            "samples",
            attacks=[attack],
            defenses=STOCK,
            plan=Plan("FedAvg", learning_rate=given.rate),
            victims=medpfl.Victims(images=given.victims),
        )
        for defense in dict.fromkeys(cell.defense for cell in report.summary):
            *naive, last = (cell for cell in report.summary if cell.defense == defense)
            first = success(naive[0]) if naive else ""
            found = f"{last.identified.value or 0:.0%}"
            yield f"| `{attack}` | `{defense}` | {first} | {success(last)} | {found} | {last.verdict} |"


def success(cell: Cell) -> str:
    """Return the share of images reconstructed with its 95 % interval, and the mean SSIM."""
    asr, similar = cell.asr, cell.ssim.value
    if asr.value is None or asr.low is None or asr.high is None or similar is None:
        return "none"
    return f"{asr.value:.0%} ({asr.low:.0%} to {asr.high:.0%}), {similar:.2f}"


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks filters", description=__doc__)
    parser.add_argument("--images", type=int, default=8, help="embedded images, one update each (%(default)s)")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.001, 0.01, 0.1], help="learning rates")
    parser.add_argument("--attacks", nargs="*", default=["Posterior(steps=100)", "RGAP"], help="specs (%(default)s)")
    parser.add_argument(
        "--victims", type=int, default=24, help="embedded images to attack, one update each (%(default)s)"
    )
    parser.add_argument("--rate", type=float, default=0.01, help="learning rate of the attacked updates (%(default)s)")
    return parser.parse_args(arguments)
