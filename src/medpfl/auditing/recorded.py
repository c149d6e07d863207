"""A recorded update, treated as one defense among the others."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from medpfl import defenses as defense_package
from medpfl.core.errors import InputError, listed
from medpfl.core.plan import Plan
from medpfl.core.records.record import Record
from medpfl.core.roles import NO_DEFENSE, Defense, State
from medpfl.core.spec import registry
from medpfl.core.tensors import shared_prefix
from medpfl.core.types import Channel, Update
from medpfl.core.user_code.stated import stated
from medpfl.data.images import LabelledImages

__all__ = ["Recorded", "behind", "defense_in", "named_as", "read", "relabel"]


@dataclass(frozen=True, repr=False)
class Recorded(Defense):
    """A stand-in defense that replaces the computed update by a client's recorded one."""

    sent: Update = field(repr=False)
    claimed: Defense = field(default=NO_DEFENSE, repr=False)
    """Defense that the client or the auditor states; the attacker knows it under the same grant as any defense."""

    def contents(self) -> dict[str, Tensor]:
        """Return everything the client sent, by name; it distinguishes one record from another."""
        buffers = {f"buffer/{name}": t for name, t in (self.sent.buffers or {}).items()}
        return {**self.sent.tensors, **buffers}

    def update(self, value: Update, state: State, generator: torch.Generator) -> tuple[Update, State]:
        """Return the recorded update, with its tensors in the model's order."""
        return self.sent.replace({name: self.sent.tensors[name] for name in value.tensors}), state

    def disclose(self, sent: Update, plan: Plan | None = None, before: Channel | None = None) -> Channel:
        """Return the claimed defense's channel."""
        return self.claimed.disclose(sent, plan, before)


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
    sent, start = record.update, record.weights
    names = [*sent.tensors, *(sent.buffers or {}), *start.parameters, *start.buffers]
    own = dict(network.named_parameters()) | dict(network.named_buffers())
    named = record.without(shared_prefix(names, list(own))).cast({name: t.dtype for name, t in own.items()})
    if named.update.num_samples in (None, plan.images):
        return named
    # Augmented in each epoch: the update is that of more images than the client has.
    return replace(named, update=replace(named.update, num_samples=plan.images))


def defense_in(record: Record, path: Path) -> Defense:
    """Return the built-in defense that a record states, or no defense; the file may come from another party.

    Raises:
        InputError: the record states a defense that is not built in, or one with ``file.py:Name`` or
            ``package.module:Name`` among its arguments.
    """
    if record.defense is None:
        return NO_DEFENSE
    return stated(record.defense, registry(defense_package), "defense", path, "--defense")


def relabel(truth: LabelledImages, record: Record, plan: Plan) -> LabelledImages:
    """Renumber the target images' labels and masks to match the record's class order, by class name.

    Raises:
        InputError: the images differ in number or shape from those behind the update, or have an unknown class.
    """
    if len(truth) != plan.images:
        raise InputError(
            f"the record was made from {plan.images} images, but --truth holds {len(truth)}: "
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
