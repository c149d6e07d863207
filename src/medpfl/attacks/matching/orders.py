"""Local steps in an unknown order: which label enters at which step.

Several local steps use the images one batch after the other, in an order that the client draws and does not send.
Within one epoch, an attacker may call the image of the first step the first one; then only the sequence of the labels
is unknown. With several epochs, it is also unknown at which step an image returns.

Each guess of the sequence needs a search of its own, which is expensive. But the last layer's update hardly depends on
the images: it is a sum of p - y over the steps, and p depends on the labels of earlier steps. So every sequence is
first played once, with made-up images, and the best ones several times, each time with other images. Only those whose
last layer comes nearest to the sent one compete in searches.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import factorial, log

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional

from medpfl.attacks.matching.labels import last_layer
from medpfl.attacks.matching.problem import stacks
from medpfl.core.types import Batch, Observation
from medpfl.federated.draws import Draws
from medpfl.federated.local import local_update

__all__ = ["PLAYED", "Sequences", "likely_sequences", "unknown_order"]

PLAYED = 1024
"""Largest number of sequences that are played with made-up images. If more are possible, only a part of them is."""

_FEW, _CHUNK = 64, 64
"""The same for models too large to be evaluated together, and number of sequences in one evaluation otherwise."""

_AGAIN, _PART = 7, 16
"""Number of replays of the best sequences, and the divisor of the limit that gives the number of these sequences."""

_COARSE = 4
"""Side of the made-up images before they are enlarged. Batch norm needs images that are not constant."""

_TINY = 1e-30

Guess = tuple[tuple[int, ...], ...]
"""A sequence: the images' labels, then the order of the images in each epoch but the first."""


@dataclass(frozen=True, eq=False)
class Sequences:
    """S sequences for each of V victims, the likeliest first. Where fewer are possible, the likeliest is repeated.

    Attributes:
        labels: classes (V, S, N), by image.
        order: image indices (V, S, epochs, N) in each epoch's order; ``None``: the given order.
    """

    labels: Tensor
    order: Tensor | None


def unknown_order(seen: Observation) -> bool:
    """Return True if one client's labels enter at several steps, and it is not granted at which."""
    view, *more = seen.views
    plan, *others = view.plans
    if more or others or seen.label_shape or plan.sampling != "shuffle" or plan.batches == 1:
        return False
    return seen.labels is None or seen.order is None


def likely_sequences(seen: Observation, classes: Tensor, count: int, generator: torch.Generator) -> Sequences:
    """Return the sequences whose last layer, with made-up images, comes nearest to the sent one.

    If the labels are granted, only their order is unknown. Otherwise every sequence of labels is possible, since
    inferred numbers of images per class are often wrong after several steps. If more than `PLAYED` are possible, begin
    with the given labels in random orders, and then change the best sequences step by step.

    Args:
        seen: observation with an unknown order (see `unknown_order`).
        classes: granted or inferred classes (V, N).
        count: number S of sequences to return, at least 1.
        generator: source of the made-up images, and of random orders.
    """
    seed = int(torch.randint(2**62, (1,), generator=generator))  # the same for all victims, whatever their number
    found = []
    for victim, labels in enumerate(classes.tolist()):
        own = torch.Generator().manual_seed(seed)
        client = _MadeUpClient(seen, victim, own)
        best = client.likeliest(tuple(labels), count, own)
        best += best[:1] * (count - len(best))
        found.append([(guess[0], client.order(guess)) for guess in best])
    labels, order = (torch.tensor([[pair[i] for pair in own] for own in found]).to(classes.device) for i in (0, 1))
    return Sequences(labels, order if seen.order is not None or order.shape[2] > 1 else None)


class _MadeUpClient:
    """A client with made-up images, which plays sequences.

    Args:
        seen: observation.
        victim: the victim whose update is compared.
        generator: source of the images.
    """

    def __init__(self, seen: Observation, victim: int, generator: torch.Generator) -> None:
        self.seen, self.view, self.plan = seen, seen.views[0], seen.views[0].plans[0]
        shape = (seen.num_images, *seen.image_shape)
        self.images, *self.others = (_smooth(shape, generator) for _ in range(1 + _AGAIN))
        self.names = [name for name in last_layer(seen) if name] or list(self.view.weights.parameters)
        self.sent = {}
        for name in self.names:
            value, told = self.view.read(name)
            self.sent[name] = (value[victim], told[victim])
        self.given = None if seen.order is None else seen.order[victim].tolist()
        self.small = stacks(self.view.weights)

    def order(self, guess: Guess) -> Sequence[Sequence[int]]:
        """Return a guess's order (epochs, N)."""
        return self.given or [range(len(guess[0])), *guess[1:]]

    def likeliest(self, labels: tuple[int, ...], count: int, generator: torch.Generator) -> list[Guess]:
        """Return at most `count` guesses, the nearest to the sent update first: by the mean logarithm of distances.

        In 36 tuning cases (LeNet, five images, 32 to 1,024 sequences), the true one is among the first four 30 times;
        by one set of images, 22 times.
        """
        limit = PLAYED if self.small else _FEW
        first = self._nearest(labels, max(count, limit // _PART), limit, generator)
        costs = [first, *(self._costs(list(first), images) for images in self.others)]
        return sorted(first, key=lambda guess: sum(log(max(one[guess], _TINY)) for one in costs))[:count]

    def _nearest(
        self, labels: tuple[int, ...], count: int, limit: int, generator: torch.Generator
    ) -> dict[Guess, float]:
        """Return the costs of the nearest `count` of at most `limit` guesses, by the first set of images."""
        free = self.plan.epochs - 1 if self.given is None else 0
        images, known = len(labels), self.seen.labels is not None
        possible = (factorial(images) if known else self.seen.num_classes**images) * factorial(images) ** free
        if possible <= limit:
            firsts = (
                itertools.permutations(labels)
                if known
                else itertools.product(range(self.seen.num_classes), repeat=images)
            )
            orders = itertools.product(itertools.permutations(range(images)), repeat=free)
            guesses = [self._sorted((first, *later)) for first, later in itertools.product(firsts, list(orders))]
            costs = self._costs(guesses := list(dict.fromkeys(guesses)), self.images)
            return _lowest(costs, count)
        shuffled = [tuple(labels[i] for i in torch.randperm(images, generator=generator)) for _ in range(limit // 4)]
        later = (tuple(range(images)),) * free
        costs = self._costs(list(dict.fromkeys(self._sorted((first, *later)) for first in shuffled)), self.images)
        expanded: set[Guess] = set()
        while len(costs) < limit:
            if not (open_ := [guess for guess in _lowest(costs, count) if guess not in expanded]):
                break
            expanded.add(open_[0])
            new = dict.fromkeys(g for g in map(self._sorted, self._neighbors(open_[0])) if g not in costs)
            costs |= self._costs(list(new)[: limit - len(costs)], self.images)
        return _lowest(costs, count)

    def _sorted(self, guess: Guess) -> Guess:
        """Return the guess with sorted steps, since the order of images within a step does not matter."""
        first, *later = guess
        size = self.plan.batch_size
        if not later and self.given is None:
            first = _steps_sorted(first, size)
        return (first, *(_steps_sorted(row, size) for row in later))

    def _neighbors(self, guess: Guess) -> Iterator[Guess]:
        """Yield the guesses with one other label, and those with two labels or two steps of an image exchanged."""
        first = guess[0]
        if self.seen.labels is None:
            for i, old in enumerate(first):
                yield from ((_with(first, {i: k}), *guess[1:]) for k in range(self.seen.num_classes) if k != old)
        for place, row in enumerate(guess):
            for i, j in itertools.combinations(range(len(row)), 2):
                if row[i] != row[j]:
                    yield (*guess[:place], _with(row, {i: row[j], j: row[i]}), *guess[place + 1 :])

    def _costs(self, guesses: list[Guess], images: Tensor) -> dict[Guess, float]:
        """Play guesses with images (N, C, H, W), and return the last layer's relative squared distance of each."""
        if not guesses:
            return {}
        like = next(iter(self.view.weights.parameters.values()))
        images = images.to(like)
        labels = torch.tensor([guess[0] for guess in guesses], device=like.device)
        labels = functional.one_hot(labels, self.seen.num_classes).to(like)
        orders = torch.tensor([[list(row) for row in self.order(guess)] for guess in guesses], device=like.device)

        def cost(labels: Tensor, order: Tensor) -> Tensor:
            made = local_update(self.seen.model, Batch(images, labels), self.plan, self.view.weights, Draws(order))
            apart = [self._apart(name, made.tensors[name]) for name in self.names]
            return torch.stack(apart).sum()

        with torch.no_grad():
            if self.small:
                found = vmap(cost, chunk_size=_CHUNK, randomness="different")(labels, orders)
            else:
                found = torch.stack([cost(*one) for one in zip(labels, orders, strict=True)])
        return dict(zip(guesses, found.nan_to_num(torch.inf).tolist(), strict=True))

    def _apart(self, name: str, made: Tensor) -> Tensor:
        sent, told = self.sent[name]
        return ((made - sent) * told).square().sum() / (sent * told).square().sum().clamp(min=_TINY)


def _lowest(costs: dict[Guess, float], count: int) -> dict[Guess, float]:
    """Return at most `count` guesses with the lowest costs, in this order."""
    return {guess: costs[guess] for guess in sorted(costs, key=lambda guess: costs[guess])[:count]}


def _with(row: tuple[int, ...], changes: dict[int, int]) -> tuple[int, ...]:
    return tuple(changes.get(i, old) for i, old in enumerate(row))


def _steps_sorted(row: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Return the row with each step's part, of this size, in ascending order."""
    return tuple(i for start in range(0, len(row), size) for i in sorted(row[start : start + size]))


def _smooth(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return images in [0, 1] with few frequencies."""
    coarse = torch.rand(*shape[:2], *[_COARSE] * (len(shape) - 2), generator=generator)
    mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[len(shape)]
    return functional.interpolate(coarse, size=shape[2:], mode=mode)
