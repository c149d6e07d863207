"""Which images stand behind which update."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.data.images import LabelledImages
from medpfl.data.partition import Partition

__all__ = ["draw_victims"]


def draw_victims(
    data: LabelledImages,
    images: int,
    per_update: int,
    partition: Partition,
    generator: torch.Generator,
    together: int = 1,
) -> list[Tensor]:
    """Index tensors (N,) of the updates to attack: clients take turns, and classes come in evenly.

    Args:
        data: all images.
        images: how many to attack; rounded down to whole updates.
        per_update: N.
        partition: deals the images to clients.
        generator: of partition and draw.
        together: clients of the partition whose updates are summed: each has one in every so many updates.

    Raises:
        InputError: fewer images than asked, or clients too small for one update.
    """
    if images < 1:
        raise InputError(f"images is {images}: it must be at least 1")
    if per_update > len(data):
        raise InputError(f"an update of {per_update} images needs more than the {len(data)} that the data has")
    if images > len(data):
        raise InputError(f"{images} images were asked for, the data has {len(data)}: ask for fewer")
    updates = images // per_update
    if not updates:
        raise InputError(f"{images} images are less than one update of {per_update}: ask for more")
    if not (rounds := updates // together):
        least = together * per_update
        raise InputError(f"a sum of {together} updates is of {least} images, {images} were asked for: ask for more")
    updates = rounds * together
    clients = partition.deal(data, generator)
    shares = _shares(updates, [len(client) // per_update for client in clients], per_update)
    if together > 1 and len(set(shares)) > 1:
        raise InputError(
            f"{rounds} sums of {together} clients need {rounds * per_update} images of each, and a client has fewer: "
            "ask for fewer images, or deal them evenly (--partition)"
        )
    taken: Counter[int] = Counter()
    parts = []
    for client, share in zip(clients, shares, strict=True):
        chosen = _evenly(client, data.labels, share * per_update, taken, generator)
        parts.append(chosen[torch.randperm(len(chosen), generator=generator)].split(per_update) if share else ())
    return list(_in_turn(parts))


def _shares(updates: int, capacity: list[int], per_update: int) -> list[int]:
    """Updates of each client, as even as their images allow."""
    if sum(capacity) < updates:
        raise InputError(
            f"{updates} updates of {per_update} images were asked for, the clients have enough for "
            f"{sum(capacity)}: ask for fewer images, a smaller batch or fewer clients"
        )
    shares = [0] * len(capacity)
    while sum(shares) < updates:
        for i, room in enumerate(capacity):
            if shares[i] < room and sum(shares) < updates:
                shares[i] += 1
    return shares


def _evenly(client: Tensor, labels: Tensor, count: int, taken: Counter[int], generator: torch.Generator) -> Tensor:
    """`count` of a client's images, each of the class that was taken least so far, by all clients."""
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
