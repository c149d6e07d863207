"""The choice of target images, and their assignment to updates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.core.experiments.groups import Victims
from medpfl.core.experiments.limits import USUAL_IMAGES
from medpfl.core.messages import say
from medpfl.data.images import LabelledImages
from medpfl.data.partition import Partition

__all__ = ["draw_victims", "fitted"]


def fitted(victims: Victims, data: LabelledImages, per_update: int, usual: int = USUAL_IMAGES) -> Victims:
    """Return the settings with a number of images: by default `usual`, or one update's, or all if there are fewer."""
    if victims.images is not None:
        return victims
    images = min(max(usual, per_update), len(data))
    if images < usual:
        say(f"note: there are {images} images, and all are attacked (with more, {usual} by default)")
    return victims.having(images=images)


def draw_victims(
    data: LabelledImages,
    images: int,
    per_update: int,
    partition: Partition,
    generator: torch.Generator,
    together: int = 1,
) -> list[Tensor]:
    """Draw the images behind each update to attack: clients take turns, and classes are balanced.

    Args:
        data: all images.
        images: number of images to attack, rounded down to whole updates.
        per_update: images per update, N.
        partition: rule that distributes the images among clients.
        generator: generator for the partition and the draw.
        together: number of clients whose updates are summed; if above 1, every client gets the same number of updates.

    Returns:
        An index tensor (N,) for each update.

    Raises:
        InputError: there are fewer images than requested, or clients have too few images for the updates.
    """
    if images < 1:
        raise InputError(f"images is {images}: it must be at least 1")
    if per_update > len(data):
        raise InputError(f"an update holds {per_update} images, but this data set has {len(data)}: use smaller updates")
    if images > len(data):
        raise InputError(f"--images is {images}, but this data set has {len(data)}: attack fewer images")
    updates = images // per_update
    if not updates:
        raise InputError(f"--images is {images}, but one update holds {per_update}: attack more images")
    if not (rounds := updates // together):
        least = together * per_update
        raise InputError(f"a sum of {together} updates holds {least} images, but --images is {images}: attack more")
    updates = rounds * together
    clients = partition.deal(data, generator)
    shares = _shares(updates, [len(client) // per_update for client in clients], per_update)
    if together > 1 and len(set(shares)) > 1:
        raise InputError(
            f"{rounds} sums over {together} clients need {rounds * per_update} images from each, and one has fewer: "
            "attack fewer images, or distribute them evenly (--partition)"
        )
    taken: Counter[int] = Counter()
    parts = []
    for client, share in zip(clients, shares, strict=True):
        chosen = _evenly(client, data.labels, share * per_update, taken, generator)
        parts.append(chosen[torch.randperm(len(chosen), generator=generator)].split(per_update) if share else ())
    return list(_in_turn(parts))


def _shares(updates: int, capacity: list[int], per_update: int) -> list[int]:
    """Return the number of updates for each client, as even as their images allow."""
    if sum(capacity) < updates:
        raise InputError(
            f"{updates} updates of {per_update} images were requested, but the clients have images for only "
            f"{sum(capacity)}: attack fewer images, or use a smaller batch or fewer clients"
        )
    shares = [0] * len(capacity)
    while sum(shares) < updates:
        for i, room in enumerate(capacity):
            if shares[i] < room and sum(shares) < updates:
                shares[i] += 1
    return shares


def _evenly(client: Tensor, labels: Tensor, count: int, taken: Counter[int], generator: torch.Generator) -> Tensor:
    """Draw `count` of a client's images, each from the class least used so far by all clients together."""
    left: dict[int, list[int]] = {}
    for i in client[torch.randperm(len(client), generator=generator)].tolist():
        left.setdefault(int(labels[i]), []).append(i)
    chosen = []
    for _ in range(count):
        label = min((c for c in sorted(left) if left[c]), key=lambda c: taken[c])
        chosen.append(left[label].pop())
        taken[label] += 1
    return torch.tensor(chosen, dtype=torch.long)


def _in_turn(parts: list[tuple[Tensor, ...]]) -> Iterator[Tensor]:
    for place in range(max(map(len, parts), default=0)):
        yield from (part[place] for part in parts if place < len(part))
