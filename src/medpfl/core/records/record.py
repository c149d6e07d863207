"""Recorded updates: one safetensors file with JSON in its header. Pickle is never used. See ``docs/records.md``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.core.experiments.limits import (
    CLASSES,
    CLIENTS,
    IMAGES,
    NAME,
    SPEC,
    check_image_shape,
    check_whole,
    shortened,
)
from medpfl.core.plan import Plan
from medpfl.core.records.files import holds, opened, put
from medpfl.core.records.origin import Pixels, Source
from medpfl.core.records.steps import Steps
from medpfl.core.tensors import oddity, shared_prefix
from medpfl.core.types import Tensors, Update, Weights

__all__ = ["FORMAT", "VERSION", "Record"]

FORMAT = "medpfl-update"
VERSION = 2

_GROUPS = ("update", "sent_buffer", "parameter", "buffer")
_MOST_FILTERS = 100


@dataclass(frozen=True, eq=False)
class Record:
    """A client's update, or the mean of several clients', with the server's knowledge about it. It holds no image.

    Attributes:
        update: the update, without a victim axis; its buffers are those after the round.
        plan: the plan that the client followed, or the steps that it took if no plan describes them.
        weights: the global model that the client started from; its buffers are those before the round.
        image_shape: the shape (C, H, W) of the client's images, if known.
        classes: class names in label order, if known. The file contains them unchanged: do not name a patient.
        defense: spec of the client's defense, if known.
        filters: filters or mods that changed the update after training, in order, with their arguments.
        source: the framework that made the record, if known.
        pixels: the mapping from images in [0, 1] to what enters the model, if known.
        clients: number of clients whose updates are averaged in the update. Above 1, each follows the plan and has
            equally many images, and `num_samples` counts all of them.
    """

    update: Update
    plan: Plan | Steps
    weights: Weights
    image_shape: tuple[int, ...] | None = None
    classes: tuple[str, ...] | None = None
    defense: str | None = None
    filters: tuple[str, ...] = ()
    source: Source | None = None
    pixels: Pixels | None = None
    clients: int = 1

    @property
    def steps(self) -> Steps:
        """The client's steps."""
        return self.plan if isinstance(self.plan, Steps) else Steps.of(self.plan)

    @property
    def images(self) -> int | None:
        """Number of different images behind the update, if the plan or the client states it."""
        each = self.plan.images
        return each * self.clients if each is not None else self.update.num_samples

    def regular_plan(self) -> Plan:
        """Return the plan.

        Raises:
            InputError: the client's steps follow no plan, so that no audit can attack the update.
        """
        if not isinstance(self.plan, Steps):
            return self.plan
        count = self.update.num_samples
        return self.plan.regular(None if count is None else count // self.clients)

    def save(self, path: str | Path) -> None:
        """Write the record as a safetensors file; tensor names begin with their group, as in ``update/fc.weight``."""
        groups = (self.update.tensors, self.update.buffers or {}, self.weights.parameters, self.weights.buffers)
        tensors = {f"{group}/{name}": t for group, own in zip(_GROUPS, groups, strict=True) for name, t in own.items()}
        about = {
            "format": FORMAT,
            "version": VERSION,
            "kind": self.update.kind,
            "num_samples": self.update.num_samples,
            "sends_buffers": self.update.buffers is not None,
            "steps": self.steps.to_dict(),
            "image_shape": self.image_shape,
            "classes": self.classes,
            "defense": self.defense,
            "filters": list(self.filters),
            "source": None if self.source is None else dataclasses.asdict(self.source),
            "pixels": None if self.pixels is None else self.pixels.to_dict(),
            "clients": self.clients,
        }
        put(Path(path), FORMAT, about, tensors)

    @staticmethod
    def is_one(path: Path) -> bool:
        """Return True if a file's header says that it is a record."""
        return holds(path, FORMAT)

    @classmethod
    def load(cls, path: str | Path) -> Record:
        """Read a record of any version from a file.

        Raises:
            InputError: the file is not a record, is damaged, has a later version, or contains an invalid plan.
        """
        path = Path(path)
        about, tensors = opened(path, FORMAT, "record")
        version = about.get("version")
        if version not in (1, VERSION) or isinstance(version, bool):
            raise InputError(
                f"'{path}' is a record of version {shortened(version)}, this MedPFL reads versions 1 to {VERSION}"
            )
        return cls._from(path, about, _grouped(path, tensors))

    @classmethod
    def _from(cls, path: Path, about: dict[str, Any], groups: dict[str, dict[str, Tensor]]) -> Record:
        try:
            said = _Header(**{field.name: _said(about, field) for field in dataclasses.fields(_Header)})
            made = said.made_plan
        except (TypeError, InputError) as error:  # TypeError: a plan with other fields
            raise InputError(f"the header of '{path}' is not valid: {error}") from None
        buffers = groups["sent_buffer"] if said.sends_buffers else None
        return cls(
            Update(groups["update"], said.kind, buffers, said.num_samples),
            made,
            Weights(groups["parameter"], groups["buffer"]),
            tuple(said.image_shape) if said.image_shape else None,
            tuple(said.classes) if said.classes else None,
            said.defense,
            tuple(said.filters or ()),
            None if said.source is None else Source.from_dict(said.source),
            None if said.pixels is None else Pixels.from_dict(said.pixels),
            said.clients,
        )

    def cast(self, dtypes: Mapping[str, torch.dtype]) -> Record:
        """Return the record with its tensors in a model's dtypes by name; a counter loses its fraction, as on loading.

        Frameworks average counters into floats, and send weights in other precisions than the model's.
        """

        def own(tensors: Tensors) -> dict[str, Tensor]:
            return {name: t.to(dtypes.get(name, t.dtype)) for name, t in tensors.items()}

        return self._changed(own)

    def named_as(self, own: Tensors) -> Record:
        """Return the record under a model's own names and dtypes, without a wrapper's prefix (``DataParallel``)."""
        names = [*self.update.tensors, *(self.update.buffers or {}), *self.weights.parameters, *self.weights.buffers]
        return self.without(shared_prefix(names, list(own))).cast({name: t.dtype for name, t in own.items()})

    def without(self, prefix: str) -> Record:
        """Return the record with a prefix such as ``"module."`` removed from its tensors' names."""
        if not prefix:
            return self

        def bare(tensors: Tensors) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}

        plan = self.plan
        if isinstance(plan, Steps):
            plan = plan.renamed(lambda layer: layer.removeprefix(prefix))
        return dataclasses.replace(self._changed(bare), plan=plan)

    def _changed(self, change: Callable[[Tensors], dict[str, Tensor]]) -> Record:
        own, sent = self.weights, self.update
        buffers = None if sent.buffers is None else change(sent.buffers)
        return dataclasses.replace(
            self,
            update=dataclasses.replace(sent, tensors=change(sent.tensors), buffers=buffers),
            weights=Weights(change(own.parameters), change(own.buffers)),
        )

    def misfits(self) -> list[str]:
        """Return all mismatches between update, weights and plan: names, shapes, dtypes, values that are not finite."""
        problems = []
        own, sent, known = self.weights.parameters, self.update.tensors, self.weights.buffers
        buffers = self.update.buffers or {}
        problems += [f"{k}: a parameter without an update" for k in own if k not in sent]
        problems += [f"{k}: an update without a parameter" for k in sent if k not in own]
        problems += [f"{k}: a sent buffer that the model does not have" for k in buffers if k not in known]
        problems += _unlike("update", sent, "parameter", own) + _unlike("sent buffer", buffers, "buffer", known)
        for group, members in (("update", sent), ("sent buffer", buffers), ("parameter", own), ("buffer", known)):
            odd = {k: oddity(t) for k, t in members.items()}
            problems += [f"{k}: {group} that {why}" for k, why in odd.items() if why]
            problems += [
                f"{k}: {group} with values that are not finite"
                for k, t in members.items()
                if not odd[k] and not t.isfinite().all()
            ]
        algorithm = self.plan.algorithm
        kind = "gradient" if algorithm == "FedSGD" else "difference"
        if self.update.kind != kind:
            problems.append(
                f"the update is a {self.update.kind}, but a {algorithm} plan sends a {kind}: "
                f"save Update(tensors, kind='{kind}')"
            )
        if self.update.num_samples not in (None, self.images):
            problems.append(f"num_samples is {self.update.num_samples}, but the plan is for {self.images} images")
        problems += [f"the update contains {word}, but the plan does not send them" for word in self._unplanned()]
        return sorted(problems)

    def _unplanned(self) -> list[str]:
        there = {"buffers": self.update.buffers is not None, "num_samples": self.update.num_samples is not None}
        return [word for word, held in there.items() if held and word not in self.plan.sends]


def _grouped(path: Path, tensors: Tensors) -> dict[str, dict[str, Tensor]]:
    groups: dict[str, dict[str, Tensor]] = {group: {} for group in _GROUPS}
    for name, tensor in tensors.items():
        group, _, member = name.partition("/")
        if group not in groups or not all(member.split(".")) or "/" in member:
            raise InputError(f"'{path}' contains a tensor '{name}' that does not belong in a record")
        groups[group][member] = tensor
    return groups


@dataclass(frozen=True)
class _Header:
    """A record's header. Each field is checked, because another party may have written it.

    Raises:
        InputError: a field has the wrong type or is out of bounds.
    """

    version: Any
    kind: Any
    num_samples: Any
    sends_buffers: Any
    image_shape: Any
    classes: Any
    plan: Any = None  # version 1
    steps: Any = None
    defense: Any = None  # the oldest records have none
    filters: Any = None
    source: Any = None
    pixels: Any = None
    clients: Any = 1

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in ("gradient", "difference"):
            raise InputError(f"kind is {shortened(self.kind)}: it must be gradient or difference")
        if self.num_samples is not None:
            check_whole("num_samples", self.num_samples, 1, IMAGES)
        if not isinstance(self.sends_buffers, bool):
            raise InputError(f"sends_buffers is {shortened(self.sends_buffers)}: it must be true or false")
        if self.image_shape is not None:
            check_image_shape(self.image_shape)
        if self.classes is not None:
            _check_classes(self.classes)
        if self.defense is not None and not isinstance(self.defense, str):
            raise InputError(f"defense is {shortened(self.defense)}: it must be a spec or null")
        if self.filters is not None:
            _check_filters(self.filters)
        check_whole("clients", self.clients, 1, CLIENTS)
        for told, kind in ((self.source, Source), (self.pixels, Pixels)):
            if told is not None:
                kind.from_dict(told)

    @property
    def made_plan(self) -> Plan | Steps:
        """The plan that the client followed, or its steps."""
        if self.version == 1:
            if not isinstance(self.plan, dict):
                what = "'plan' is missing" if self.plan is None else f"plan is {shortened(self.plan)}"
                raise InputError(f"{what}: it must be an object with the plan's fields")
            return Plan(**self.plan)
        steps = Steps.from_dict(self.steps)
        try:
            return steps.regular(None if self.num_samples is None else self.num_samples // self.clients)
        except InputError:
            return steps


def _said(about: dict[str, Any], field: dataclasses.Field[Any]) -> Any:
    if field.name not in about and field.default is dataclasses.MISSING:
        raise InputError(f"{field.name!r} is missing")
    return about.get(field.name, None if field.default is dataclasses.MISSING else field.default)


def _check_classes(classes: Any) -> None:
    if not isinstance(classes, list) or not all(isinstance(name, str) and len(name) <= NAME for name in classes):
        raise InputError(f"classes is {shortened(classes)}: it must be a list of names")
    if len(classes) > CLASSES:
        raise InputError(f"classes names {len(classes)} classes: at most {CLASSES} are allowed")
    if len(set(classes)) < len(classes):
        raise InputError("classes names a class twice")


def _check_filters(filters: Any) -> None:
    if not isinstance(filters, list) or not all(isinstance(one, str) and len(one) <= SPEC for one in filters):
        raise InputError(f"filters is {shortened(filters)}: it must be a list of texts")
    if len(filters) > _MOST_FILTERS:
        raise InputError(f"filters names {len(filters)} filters: at most {_MOST_FILTERS} are allowed")


def _unlike(what: str, sent: Tensors, whose: str, own: Tensors) -> list[str]:
    """List the mismatches of sent tensors and the model's; `what` and `whose` name the two sides.

    Floating dtypes may differ, and a counter may be an integer or a float on either side: frameworks average it.
    """
    problems = []
    for name in sorted(own.keys() & sent.keys()):
        if own[name].shape != sent[name].shape:
            problems.append(f"{name}: {what} {tuple(sent[name].shape)}, {whose} {tuple(own[name].shape)}")
        elif own[name].is_floating_point() and not (sent[name].is_floating_point() or _counts(name)):
            problems.append(f"{name}: {what} {sent[name].dtype}, {whose} {own[name].dtype}")
    return problems


def _counts(name: str) -> bool:
    return name.rpartition(".")[2] == "num_batches_tracked"
