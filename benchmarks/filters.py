"""``python -m benchmarks filters``: measure what the filters that federations ship change in an update.

The update is the weight difference after one step of LeNet on one of the embedded images. No attack runs: `medpfl
audit` attacks it. docs/defenses.md has the last results.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from medpfl.core.plan import Plan
from medpfl.core.roles import Defense
from medpfl.core.types import Batch, Update, Weights
from medpfl.data import Samples
from medpfl.defenses import Clipping, LocalDP, PercentilePrivacy, SVTPrivacy
from medpfl.federated.local import local_update
from medpfl.federated.ready import prepare
from medpfl.models import LeNet

SHIPPED = LocalDP(1.0, 1e-4, 10.0)
"""Settings that one product ships."""


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
    """Yield a row for each learning rate."""
    yield "| learning rate | `PercentilePrivacy` changes the update by | `SVTPrivacy`: cosine, values sent | noise |"
    for rate in given.rates:
        if not goes_on():
            yield "no time left"
            return
        raw = updates(rate, given.images)
        changes = [float((sent(PercentilePrivacy(), one) - flat(one)).norm() / flat(one).norm()) for one in raw]
        chosen = [sent(SVTPrivacy(), one) for one in raw]
        cosines = [float(torch.cosine_similarity(own, flat(one), 0)) for own, one in zip(chosen, raw, strict=True)]
        share = sum(float((own != 0).double().mean()) for own in chosen) / len(chosen)
        clipped = [sent(Clipping(SHIPPED.clipping_norm), one) for one in raw]
        noise = [float((sent(SHIPPED, one) - own).norm() / own.norm()) for one, own in zip(raw, clipped, strict=True)]
        yield (
            f"| {rate} | {min(changes):.2%} to {max(changes):.2%} | {min(cosines):.2f} to {max(cosines):.2f}, "
            f"{share:.0%} | {min(noise):.1%} to {max(noise):.1%} |"
        )


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks filters", description=__doc__)
    parser.add_argument("--images", type=int, default=8, help="embedded images, one update each (%(default)s)")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.001, 0.01, 0.1], help="learning rates")
    return parser.parse_args(arguments)
