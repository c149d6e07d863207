"""Rules that distribute images among clients. All images of a patient stay together."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.core.spec import Part
from medpfl.data.images import LabelledImages

# The registry of partitions: without the role itself.
__all__ = ["IID", "Dirichlet"]

_REDRAWS = 20


class Partition(Part):
    """A rule that distributes images among clients. Concrete classes are frozen dataclasses."""

    def deal(self, data: LabelledImages, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return the images of each client.

        Args:
            data: M images. A patient's images stay together; an image without a patient is a unit of its own.
            generator: random generator on the CPU; the only source of randomness.

        Returns:
            One int64 tensor of sorted indices per client. The tensors are disjoint and never empty, and together hold
            all M indices.

        Raises:
            InputError: there are more clients than patients.
        """
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class IID(Partition):
    """The same mixture of classes and the same number of images for every client, as far as patients allow.

    Attributes:
        clients: number of clients, at least 1.
    """

    clients: int = 1

    def __post_init__(self) -> None:
        _check_clients(self.clients)

    def deal(self, data: LabelledImages, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Assign patients, largest first, each to the client with the fewest images; see `Partition.deal`."""
        units = _units(data, self.clients, generator)
        labels = [_majority(data.labels[unit]) for unit in units]
        clients = torch.randperm(self.clients, generator=generator).tolist()
        has: Counter[int] = Counter()
        has_of_class: Counter[tuple[int, int]] = Counter()
        owners = [0] * len(units)
        for i in sorted(range(len(units)), key=lambda i: (-len(units[i]), labels[i])):
            # Ties go to the client with the fewest images of this class, which stratifies the partition.
            label = labels[i]
            owner = owners[i] = min(clients, key=lambda c: (has[c], has_of_class[c, label]))
            has[owner] += len(units[i])
            has_of_class[owner, label] += len(units[i])
        return _dealt(units, owners, self.clients)


@dataclass(frozen=True, repr=False)
class Dirichlet(Partition):
    """For each class, shares of the clients drawn from a Dirichlet distribution.

    Hsu et al. 2019 (arXiv:1909.06335), in the per-class form by Yurochkin et al. 2019
    (arXiv:1905.12022). A patient's class is the one that most of their images have.

    Attributes:
        alpha: concentration, above 0; smaller values make clients less alike.
        clients: number of clients, at least 1.
    """

    alpha: float = 0.5
    clients: int = 4

    def __post_init__(self) -> None:
        _check_clients(self.clients)
        if not isinstance(self.alpha, int | float) or not 0 < self.alpha < math.inf:
            raise InputError(f"alpha={self.alpha!r} must be a number above 0")

    def deal(self, data: LabelledImages, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw each client's share; see `Partition.deal`.

        If a client gets nothing, the shares are redrawn a few times. After that, it gets one patient from the client
        with the most patients.
        """
        units = _units(data, self.clients, generator)
        # torch's own Dirichlet distribution takes no generator.
        random = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        owners: list[int] = []
        for _ in range(_REDRAWS):
            owners = self._draw(units, data.labels, random)
            if len(set(owners)) == self.clients:
                break
        return _dealt(units, _none_empty(owners, self.clients), self.clients)

    def _draw(self, units: list[Tensor], labels: Tensor, random: np.random.Generator) -> list[int]:
        classes = np.array([_majority(labels[unit]) for unit in units])
        sizes = np.array([len(unit) for unit in units])
        owners = np.zeros(len(units), dtype=np.int64)
        for label in np.unique(classes):
            of_class = classes == label
            ends = random.dirichlet([self.alpha] * self.clients).cumsum()
            middles = (sizes[of_class].cumsum() - sizes[of_class] / 2) / sizes[of_class].sum()
            owners[of_class] = np.searchsorted(ends, middles).clip(max=self.clients - 1)
        return owners.tolist()


def _check_clients(clients: int) -> None:
    if type(clients) is not int or clients < 1:
        raise InputError(f"clients={clients!r} must be a whole number, 1 or more")


def _units(data: LabelledImages, clients: int, generator: torch.Generator) -> list[Tensor]:
    """Return the indices of each patient's images, with the patients in random order."""
    by_patient: dict[str | int, list[int]] = {}
    for i, patient in enumerate(data.patients):
        by_patient.setdefault(i if patient is None else patient, []).append(i)
    if clients > len(by_patient):
        unit = "images" if all(p is None for p in data.patients) else "patients"
        raise InputError(f"more clients ({clients}) than {unit} ({len(by_patient)}): take at most {len(by_patient)}")
    units = [torch.tensor(indices) for indices in by_patient.values()]
    return [units[i] for i in torch.randperm(len(units), generator=generator).tolist()]


def _majority(labels: Tensor) -> int:
    return int(labels.bincount().argmax())


def _none_empty(owners: list[int], clients: int) -> list[int]:
    owners = list(owners)
    for client in set(range(clients)) - set(owners):
        largest = max(range(clients), key=owners.count)
        owners[owners.index(largest)] = client
    return owners


def _dealt(units: list[Tensor], owners: list[int], clients: int) -> tuple[Tensor, ...]:
    return tuple(
        torch.cat([unit for unit, owner in zip(units, owners, strict=True) if owner == client]).sort().values
        for client in range(clients)
    )
