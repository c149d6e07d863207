"""The images for training, and those for scoring the model."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.core.experiments.groups import Cohort
from medpfl.core.roles import DataSource
from medpfl.data.images import LabelledImages
from medpfl.data.on_disk import OnDisk
from medpfl.data.partition import IID
from medpfl.inputs.parts import Found, data_of, source_of
from medpfl.inputs.spelling import names_a_source
from medpfl.runs.environment import generator_of

__all__ = ["Splits", "splits_of"]

_ALL = 10**9
"""A limit that no data set reaches. Audits use only part of a large data set; training uses all of it."""


class Splits(NamedTuple):
    """Images by purpose.

    Attributes:
        found: all images read for training, including held-out ones.
        train: indices of the images for clients.
        judged: the sets for scoring: ``"validation"``, and ``"test"`` if there is one.
        readers: the data sources behind the images; their code is part of the training's identity.
    """

    found: Found
    train: Tensor
    judged: dict[str, LabelledImages]
    readers: tuple[DataSource | None, ...] = ()


def splits_of(data: Any, cohort: Cohort, seed: int) -> Splits:
    """Read the images for training, validation and test.

    A validation or test set that is not given comes from the source's own split, if it has one (as MedMNIST does).
    Otherwise validation images are held out; a patient's images stay together.

    Args:
        data: data as for `medpfl.audit`.
        cohort: how to read and hold out images.
        seed: seed for drawing the held-out images.

    Raises:
        InputError: if there is nothing to read, or a set has other classes or another shape than the training images.
    """
    source = _source(data, cohort)
    found = data_of(source, cohort)
    judged: dict[str, LabelledImages] = {}
    readers = {"": found.reader}
    for name, own in (("validation", cohort.validation), ("test", cohort.test)):
        if own is not None:
            judged[name], readers[name] = (read := data_of(_source(own, cohort), cohort)).images, read.reader
        elif isinstance(source, DataSource) and (other := source.published(name)) is not None:
            judged[name] = data_of(other, cohort).images
    train = torch.arange(len(found.images))
    if "validation" not in judged:
        train, judged["validation"] = _held_out(found.images, cohort.holdout, seed)
    order = [name for name in ("validation", "test") if name in judged]
    return Splits(
        found, train, {name: _matched(judged[name], found.images, name) for name in order}, tuple(readers.values())
    )


def _source(data: Any, cohort: Cohort) -> Any:
    """Return the data source, without the default limit for audits unless the user set one."""
    if isinstance(data, LabelledImages | DataSource):
        return data
    source = source_of(str(data), cohort)
    limited = not names_a_source(str(data)) and any(f.name == "limit" for f in dataclasses.fields(source))  # type: ignore[arg-type]  (sources are)
    return dataclasses.replace(source, limit=_ALL) if limited else source  # type: ignore[type-var]  (dataclasses)


def _held_out(data: LabelledImages, holdout: int, seed: int) -> tuple[Tensor, LabelledImages]:
    try:
        shares = IID(clients=holdout).deal(data, generator_of(seed, "holdout"))
    except InputError as error:
        why = error.args[0].partition(":")[0].replace("clients", "parts")
        raise InputError(
            f"one in {holdout} images cannot be held out ({why}): give a separate --validation set, or a smaller "
            "--holdout"
        ) from None
    return torch.cat(shares[1:]).sort().values, part_of(data, shares[0])


def part_of(data: LabelledImages, places: Tensor) -> LabelledImages:
    """Return the images at the given places, in ascending order. Those of a set on disk stay there.

    In memory, the pixels are copied, unless all images are meant.
    """
    if len(places) == len(data):
        return data
    chosen, images = places.tolist(), data.images
    return LabelledImages(
        images=images.at(places) if isinstance(images, OnDisk) else images[places],
        labels=data.labels[places],
        classes=data.classes,
        names=tuple(data.names[i] for i in chosen),
        patients=tuple(data.patients[i] for i in chosen),
        spacing=data.spacing,
    )


def _matched(images: LabelledImages, train: LabelledImages, name: str) -> LabelledImages:
    """Return the images with labels numbered as in the training set."""
    if images.shape != train.shape:
        raise InputError(
            f"the {name} images have shape {images.shape}, the training images {train.shape}: set --size and --channels"
        )
    if unknown := [c for c in images.classes if c not in train.classes]:
        raise InputError(
            f"the {name} set has a class {unknown[0]!r} that the training images lack; their classes are "
            f"{', '.join(train.classes)}"
        )
    place = torch.tensor([train.classes.index(c) for c in images.classes])
    return dataclasses.replace(images, labels=place[images.labels], classes=train.classes)
