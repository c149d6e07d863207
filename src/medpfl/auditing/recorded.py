"""An update that was made elsewhere, as one defense among the others."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from medpfl import defenses as defense_package
from medpfl.core.errors import InputError, listed
from medpfl.core.plan import Plan
from medpfl.core.records import Record
from medpfl.core.roles import NO_DEFENSE, Defense, State
from medpfl.core.spec import registry
from medpfl.core.tensors import shared_prefix
from medpfl.core.types import Channel, Update
from medpfl.core.user_code.stated import stated
from medpfl.data.images import LabelledImages

__all__ = ["Recorded", "behind", "defense_in", "named_as", "read", "relabel"]


@dataclass(frozen=True, repr=False)
class Recorded(Defense):
    """Whatever happened at the client that made the record: its update, in place of ours."""

    sent: Update = field(repr=False)
    claimed: Defense = field(default=NO_DEFENSE, repr=False)
    """What the client says that it did, or the auditor; the adversary knows it by the same grant as any defense."""

    def contents(self) -> dict[str, Tensor]:
        """All that was sent, by name: what tells one record from another."""
        buffers = {f"buffer/{name}": t for name, t in (self.sent.buffers or {}).items()}
        return {**self.sent.tensors, **buffers}

    def update(self, value: Update, state: State, generator: torch.Generator) -> tuple[Update, State]:
        """The recorded update, its tensors in the order of the model's."""
        return self.sent.replace({name: self.sent.tensors[name] for name in value.tensors}), state

    def disclose(self, sent: Update, plan: Plan | None = None, before: Channel | None = None) -> Channel:
        """What the claimed defense discloses."""
        return self.claimed.disclose(sent, plan, before)


def behind(defense: Defense) -> Defense:
    """The defense itself, or that which a recorded update is said to have passed."""
    return defense.claimed if isinstance(defense, Recorded) else defense


def read(path: Path) -> Record:
    """A record that is whole and fits its own weights.

    Raises:
        InputError: with everything that does not fit.
    """
    record = Record.load(path)
    if problems := record.misfits():
        raise InputError(f"the record '{path}' does not fit its own weights and plan:{listed(problems)}")
    return record


def named_as(record: Record, network: nn.Module) -> Record:
    """The record by a network's own names: a wrapper at the client, such as ``DataParallel``, puts a prefix first."""
    sent, start = record.update, record.weights
    names = [*sent.tensors, *(sent.buffers or {}), *start.parameters, *start.buffers]
    own = [name for name, _ in (*network.named_parameters(), *network.named_buffers())]
    return record.without(shared_prefix(names, own))


def defense_in(record: Record, path: Path) -> Defense:
    """The defense that a record states, one of ours, or none; the file may be another party's.

    Raises:
        InputError: it states no defense of ours, or one with a place among its arguments.
    """
    if record.defense is None:
        return NO_DEFENSE
    return stated(record.defense, registry(defense_package), "defense", path, "--defense")


def relabel(truth: LabelledImages, record: Record) -> LabelledImages:
    """The truth with the record's label indices.

    Raises:
        InputError: another number or shape of images than the update was made from, or another class.
    """
    if len(truth) != record.plan.images:
        raise InputError(
            f"the record was made from {record.plan.images} images, --truth holds {len(truth)}: "
            "give a folder with just those images, in class folders"
        )
    if record.image_shape is not None and tuple(record.image_shape) != truth.shape:
        raise InputError(
            f"the record was made from images of shape {record.image_shape}, --truth gives {truth.shape}: "
            "set --size, --fit and --channels as the client did"
        )
    if record.classes is None:
        return truth
    if unknown := set(truth.classes) - set(record.classes):
        raise InputError(f"--truth has a class {sorted(unknown)[0]!r}, the record knows {', '.join(record.classes)}")
    place = torch.tensor([record.classes.index(name) for name in truth.classes])
    masks = None if truth.masks is None else place[truth.masks]
    return replace(truth, labels=place[truth.labels], masks=masks, classes=record.classes)
