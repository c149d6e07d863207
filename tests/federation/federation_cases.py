"""Small federations: records of sites and rounds, as watched clients write them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import medpfl
from medpfl.core.records.origin import Source
from medpfl.models import MLP
from tests.flat import flat

MODEL, ATTACK = "MLP(hidden=(32,))", "RGAP"
"""A model from whose update of one image this attack solves the image at once."""


def pixels(seed: int, count: int = 1) -> torch.Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def client(
    folder: Path,
    number: int,
    images: torch.Tensor,
    *,
    model=None,
    rate: float = 0.1,
    batch: int = 0,
    truth: bool = True,
) -> Path:
    """Train as a site does in a round, and return the record's path."""
    network = model or MLP(hidden=(32,)).build((1, 16, 16), 2, seed=number)
    optimizer = torch.optim.SGD(network.parameters(), rate)
    labels = torch.arange(len(images)) % 2
    before = set(folder.glob("*.safetensors"))
    with medpfl.record(folder, network, truth=truth, source=Source("Flower", {}, number)):
        for index in torch.arange(len(images)).split(batch or len(images)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[index]), labels[index]).backward()
            optimizer.step()
    (made,) = set(folder.glob("*.safetensors")) - before
    return made


def federation(root: Path, sites=("site-1", "site-2"), rounds=(1, 2)) -> Path:
    """Write the records of several sites and rounds; a site has one image, the same in all rounds."""
    for place, site in enumerate(sites):
        for number in rounds:
            client(root / site, number, pixels(place))
    return root


def look(records, *, attacks=(ATTACK,), model=MODEL, **options) -> medpfl.Federation:
    return flat(medpfl.audit_federation, records, model, attacks=list(attacks), **options)
