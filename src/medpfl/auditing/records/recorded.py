"""A recorded update, treated as one defense among the others, and checked against its images before any attack."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medpfl.core.errors import InputError, listed, private
from medpfl.core.messages import counted, say
from medpfl.core.plan import Plan
from medpfl.core.records.origin import Pixels
from medpfl.core.records.record import Record
from medpfl.core.records.truth import Truth
from medpfl.core.roles import NO_DEFENSE, Defense, State
from medpfl.core.types import Channel, Update
from medpfl.data.images import LabelledImages
from medpfl.data.partition import Partition
from medpfl.inputs.parts import Found
from medpfl.models.entering import entering, leaving
from medpfl.recording.check import Case, Check
from medpfl.recording.client import check_case
from medpfl.recording.folder import Neighbors
from medpfl.recording.mean import check_mean

__all__ = [
    "InOrder",
    "Recorded",
    "behind",
    "check_images",
    "found_in",
    "named_as",
    "read",
    "relabel",
    "told_of",
    "unsent",
]

_OUTSIDE = 1e-3
"""Pixels may leave [0, 1] by this much, from rounding, when they are mapped back."""


@dataclass(frozen=True, repr=False)
class Recorded(Defense):
    """A stand-in defense that replaces the computed update by a client's recorded one."""

    sent: Update = field(repr=False)
    claimed: Defense = field(default=NO_DEFENSE, repr=False)
    """Defense that the client or the auditor states; the attacker knows it under the same grant as any defense."""
    unknown: tuple[str, ...] = field(default=(), repr=False)
    """Filters that changed the update in ways that no attack can be told; then `claimed` is no defense."""
    clients: int = field(default=1, repr=False)
    """Number of clients whose updates are averaged in it."""

    @property
    def acting(self) -> str:
        """The claimed defense, or the unknown filters, that acted on the update at the client."""
        return " | ".join(self.unknown) or repr(self.claimed)

    def contents(self) -> dict[str, Tensor]:
        """Return everything the client sent, by name; it distinguishes one record from another."""
        buffers = {f"buffer/{name}": t for name, t in (self.sent.buffers or {}).items()}
        return {**self.sent.tensors, **buffers}

    def update(self, value: Update, state: State, generator: torch.Generator) -> tuple[Update, State]:
        """Return the recorded update, with its tensors in the model's order; a client's own if a mean is recorded."""
        return (value if self.clients > 1 else self._ordered(value)), state

    def aggregate(
        self, value: Sequence[Update], state: State, generator: torch.Generator
    ) -> tuple[Sequence[Update], State]:
        """Return the recorded mean."""
        return ([self._ordered(value[0])] if self.clients > 1 else value), state

    def acts(self, moment: str) -> bool:
        """Return True for ``aggregate`` if a mean is recorded, and for ``update`` if not; others as in `Defense`."""
        if moment in ("aggregate", "update"):
            return (self.clients > 1) == (moment == "aggregate")
        return super().acts(moment)

    def _ordered(self, like: Update) -> Update:
        return self.sent.replace({name: self.sent.tensors.get(name, t) for name, t in like.tensors.items()})

    def disclose(self, sent: Update, plan: Plan | None = None, before: Channel | None = None) -> Channel:
        """Return the claimed defense's channel."""
        return self.claimed.disclose(sent, plan, before)


@dataclass(frozen=True, repr=False)
class InOrder(Partition):
    """Gives each client equally many images, in their order: those behind a recorded mean."""

    clients: int = 1

    def deal(self, data: LabelledImages, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return each client's images; see `Partition.deal`."""
        return torch.arange(len(data)).chunk(self.clients)


def behind(defense: Defense) -> Defense:
    """Return the defense itself, or, for a recorded update, its claimed defense."""
    return defense.claimed if isinstance(defense, Recorded) else defense


def read(path: Path) -> Record:
    """Read a record and check that it is complete and fits its own weights.

    Raises:
        InputError: the record does not fit; the message lists all problems.
    """
    record = Record.load(path)
    if problems := record.misfits():
        raise InputError(f"the record '{path}' does not fit its own weights and plan:{listed(problems)}")
    return record


def named_as(record: Record, network: nn.Module, plan: Plan) -> Record:
    """Return the record under a network's own names and dtypes, without a wrapper's prefix (``DataParallel``)."""
    named = record.named_as(dict(network.named_parameters()) | dict(network.named_buffers()))
    images = plan.images * record.clients
    if named.update.num_samples in (None, images):
        return named
    # Augmented in each epoch: the update is that of more images than the client has.
    return replace(named, update=replace(named.update, num_samples=images))


def unsent(record: Record, plan: Plan) -> str:
    """Return a note on the batch-norm statistics that a plan sends, but a record lacks; ``""`` if it lacks none."""
    own = [name for name in record.weights.buffers if name.endswith(("running_mean", "running_var"))]
    missing = [name for name in own if name not in (record.update.buffers or {})]
    if not missing or "buffers" not in plan.sends:
        return ""
    return (
        f"the record lacks {len(missing)} of the model's {len(own)} batch-norm statistics, such as '{missing[0]}', "
        "which its plan sends: attacks do without them"
    )


def relabel(truth: LabelledImages, record: Record, plan: Plan) -> LabelledImages:
    """Renumber the target images' labels and masks to match the record's class order, by class name.

    Raises:
        InputError: the images differ in number or shape from those behind the update, or have an unknown class.
    """
    images = plan.images * record.clients
    if len(truth) != images:
        of = f" of {record.clients} clients, {plan.images} of each" if record.clients > 1 else ""
        raise InputError(
            f"the record was made from {counted(images, 'image')}{of}, but --truth holds {len(truth)}: "
            "give a folder with exactly those images, in class folders"
        )
    if record.image_shape is not None and tuple(record.image_shape) != truth.shape:
        raise InputError(
            f"the record was made from images of shape {record.image_shape}, but --truth gives {truth.shape}: "
            "set --size, --fit and --channels as the client did"
        )
    if record.classes is None:
        return truth
    if unknown := set(truth.classes) - set(record.classes):
        raise InputError(f"--truth has a class {sorted(unknown)[0]!r}; the record's are {', '.join(record.classes)}")
    place = torch.tensor([record.classes.index(name) for name in truth.classes])
    masks = None if truth.masks is None else place[truth.masks]
    return replace(truth, labels=place[truth.labels], masks=masks, classes=record.classes)


def found_in(kept: Truth, path: Path, record: Record, plan: Plan) -> Found:
    """Return a truth file's images in [0, 1], one for each of the plan's images, client after client.

    Raises:
        InputError: they do not fit the record: pixels out of the range that it states, or a label without a class.
    """
    images, labels = kept.images, kept.labels
    count = plan.images * record.clients
    if len(images) != count and kept.order is not None and len(kept.order) == count:
        images, labels = images[kept.order], labels[kept.order]  # drawn anew or augmented in each epoch
    shown = leaving(images.float(), record.pixels or Pixels())
    low, high = (float(v) for v in shown.aminmax())
    if low < -_OUTSIDE or high > 1 + _OUTSIDE:
        raise InputError(
            f"the pixels in the truth file range from {low:.3g} to {high:.3g} after the mapping that the record "
            "states; record with pixels= set to the loader's own range, or mean and std"
        )
    classes = record.classes or tuple(f"class {i}" for i in range(kept.classes))
    masks = labels.long() if labels.ndim > 2 else None
    of_images = labels.argmax(1) if labels.ndim == 2 else labels
    numbers = torch.zeros(len(images), dtype=torch.long) if masks is not None else of_images.long()
    if wrong := [label for label in numbers.tolist() if not 0 <= label < len(classes)]:
        raise InputError(
            f"the truth file has an image with the label {wrong[0]}, but the record has {len(classes)} classes (0 to "
            f"{len(classes) - 1}): record with the names of all classes, or without names"
        )
    held = LabelledImages(shown.clamp(0, 1), numbers, classes, _names(images), (None,) * len(images), masks=masks)
    return Found(held, "truth file", str(private(path.resolve().parent)))


def _names(images: Tensor) -> tuple[str, ...]:
    """Return a name for each image from its pixels, so that an image has one study index in all steps and rounds."""
    pixels = (image.contiguous().numpy().tobytes() for image in images.cpu().float())
    return tuple(hashlib.sha256(own).hexdigest()[:16] for own in pixels)


def check_images(
    record: Record,
    path: Path,
    network: nn.Module,
    data: LabelledImages,
    labels: torch.Tensor,
    kept: Truth | None,
    aggregation: Defense | None = None,
    held: Record | None = None,
) -> Check:
    """Return the check of an undefended record against its images.

    Args:
        record: the record under the network's names and dtypes.
        path: its file; other records in the same folder help to find the cause of a wrong one.
        network: the client's model, which takes pixels in the loader's range.
        data, labels: the images in [0, 1], and the client's labels.
        kept: the truth file behind them, if there is one.
        aggregation: secure aggregation behind a mean, if one is stated.
        held: the record as it was read, if its dtypes are others.
    """
    truth = kept or Truth(entering(data.images[:], record.pixels or Pixels()), labels)
    if record.clients > 1:
        return check_mean(network, record, truth, aggregation, held)
    return check_case(Case(network, record, truth, Neighbors(path, record), held))


def told_of(check: Check) -> dict[str, Any]:
    """Return a check as the settings of a run state it; raise `InputError` if the record is wrong."""
    check.raise_if_wrong()
    told = {"difference": check.difference, "spread": check.spread, "checked": check.verdict}
    for line in check.open:
        say(f"note: the record: {line}")
    return {**told, "facts": list(check.facts), "open": list(check.open)}
