"""Recorded updates: one safetensors file with JSON in its header. Pickle is never used."""

from __future__ import annotations

import dataclasses
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from medpfl.core.atomic_files import write
from medpfl.core.errors import InputError
from medpfl.core.experiments.limits import CLASSES, IMAGES, NAME, check_image_shape, check_whole, shortened
from medpfl.core.plan import Plan
from medpfl.core.tensors import oddity
from medpfl.core.types import Tensors, Update, Weights

__all__ = ["FORMAT", "VERSION", "Record"]

FORMAT = "medpfl-update"
VERSION = 1


@dataclass(frozen=True, eq=False)
class Record:
    """A client's update with the server's knowledge about it. It holds no image.

    Attributes:
        update: the update, without a victim axis.
        plan: the plan that the client followed.
        weights: the global model that the client started from.
        image_shape: the shape (C, H, W) of the client's images, if known.
        classes: class names in label order, if known. The file contains them unchanged: do not name a patient.
        defense: spec of the client's defense, if known.
    """

    update: Update
    plan: Plan
    weights: Weights
    image_shape: tuple[int, ...] | None = None
    classes: tuple[str, ...] | None = None
    defense: str | None = None

    def save(self, path: str | Path) -> None:
        """Write the record as a safetensors file; tensor names begin with their group, as in ``update/fc.weight``."""
        groups = {
            "update": self.update.tensors,
            "sent_buffer": self.update.buffers or {},
            "parameter": self.weights.parameters,
            "buffer": self.weights.buffers,
        }
        tensors = {
            f"{group}/{name}": t.detach().cpu().contiguous().clone()
            for group, members in groups.items()
            for name, t in members.items()
        }
        about = {
            "format": FORMAT,
            "version": VERSION,
            "kind": self.update.kind,
            "num_samples": self.update.num_samples,
            "sends_buffers": self.update.buffers is not None,
            "plan": dataclasses.asdict(self.plan),
            "image_shape": self.image_shape,
            "classes": self.classes,
            "defense": self.defense,
        }
        write(Path(path), save(tensors, {"format": "pt", FORMAT: json.dumps(about)}))

    @staticmethod
    def is_one(path: Path) -> bool:
        """Return True if a file's header says that it is a record."""
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                return FORMAT.encode() in file.read(min(length, 1 << 24))
        except (OSError, struct.error):
            return False

    @classmethod
    def load(cls, path: str | Path) -> Record:
        """Read a record from a file.

        Raises:
            InputError: the file is not a record, is damaged, has another version, or contains an invalid plan.
        """
        path = Path(path)
        try:
            with safe_open(path, "pt") as file:
                header = (file.metadata() or {}).get(FORMAT)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError) as error:
            raise InputError(f"'{path}' cannot be read as a record: {error}") from None
        if header is None:
            raise InputError(
                f"'{path}' is a safetensors file, but not a record: make one with medpfl.Record(...).save(path)"
            )
        return cls._from(path, _json(path, header), tensors)

    @classmethod
    def _from(cls, path: Path, about: dict[str, Any], tensors: dict[str, Tensor]) -> Record:
        if about.get("version") != VERSION:
            raise InputError(
                f"'{path}' is a record of version {about.get('version')}, this MedPFL reads version {VERSION}"
            )
        groups: dict[str, dict[str, Tensor]] = {g: {} for g in ("update", "sent_buffer", "parameter", "buffer")}
        for name, tensor in tensors.items():
            group, _, member = name.partition("/")
            if group not in groups or not member:
                raise InputError(f"'{path}' contains a tensor '{name}' that does not belong in a record")
            groups[group][member] = tensor
        try:
            said = _Header(**{field.name: _said(about, field) for field in dataclasses.fields(_Header)})
        except (TypeError, InputError) as error:  # TypeError: a plan with other fields
            raise InputError(f"the header of '{path}' is not valid: {error}") from None
        buffers = groups["sent_buffer"] if said.sends_buffers else None
        return cls(
            Update(groups["update"], said.kind, buffers, said.num_samples),
            said.made_plan,
            Weights(groups["parameter"], groups["buffer"]),
            tuple(said.image_shape) if said.image_shape else None,
            tuple(said.classes) if said.classes else None,
            said.defense,
        )

    def without(self, prefix: str) -> Record:
        """Return the record with a prefix such as ``"module."`` removed from its tensors' names."""
        if not prefix:
            return self

        def bare(tensors: Tensors) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}

        own, sent = self.weights, self.update
        buffers = None if sent.buffers is None else bare(sent.buffers)
        return dataclasses.replace(
            self,
            update=dataclasses.replace(sent, tensors=bare(sent.tensors), buffers=buffers),
            weights=Weights(bare(own.parameters), bare(own.buffers)),
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
        kind = "gradient" if self.plan.algorithm == "FedSGD" else "difference"
        if self.update.kind != kind:
            problems.append(
                f"the update is a {self.update.kind}, but a {self.plan.algorithm} plan sends a {kind}: "
                f"save Update(tensors, kind='{kind}')"
            )
        if self.update.num_samples not in (None, self.plan.images):
            problems.append(f"num_samples is {self.update.num_samples}, but the plan is for {self.plan.images} images")
        problems += [f"the update contains {word}, but the plan does not send them" for word in self._unplanned()]
        return sorted(problems)

    def _unplanned(self) -> list[str]:
        there = {"buffers": self.update.buffers is not None, "num_samples": self.update.num_samples is not None}
        return [word for word, held in there.items() if held and word not in self.plan.sends]


@dataclass(frozen=True)
class _Header:
    """A record's header. Each field is checked, because another party may have written it.

    Raises:
        InputError: a field has the wrong type or is out of bounds.
    """

    kind: Any
    num_samples: Any
    sends_buffers: Any
    plan: Any
    image_shape: Any
    classes: Any
    defense: Any = None  # older records have none

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
        _ = self.made_plan

    @property
    def made_plan(self) -> Plan:
        """The plan that the client followed."""
        if not isinstance(self.plan, dict):
            raise InputError(f"plan is {shortened(self.plan)}: it must be an object with the plan's fields")
        return Plan(**self.plan)


def _said(about: dict[str, Any], field: dataclasses.Field[Any]) -> Any:
    if field.name not in about and field.default is dataclasses.MISSING:
        raise InputError(f"{field.name!r} is missing")
    return about.get(field.name)


def _check_classes(classes: Any) -> None:
    if not isinstance(classes, list) or not all(isinstance(name, str) and len(name) <= NAME for name in classes):
        raise InputError(f"classes is {shortened(classes)}: it must be a list of names")
    if len(classes) > CLASSES:
        raise InputError(f"classes names {len(classes)} classes: at most {CLASSES} are allowed")
    if len(set(classes)) < len(classes):
        raise InputError("classes names a class twice")


def _unlike(what: str, sent: Tensors, whose: str, own: Tensors) -> list[str]:
    """List the shape and dtype mismatches of sent tensors and the model's; `what` and `whose` name the two sides."""
    problems = []
    for name in sorted(own.keys() & sent.keys()):
        if own[name].shape != sent[name].shape:
            problems.append(f"{name}: {what} {tuple(sent[name].shape)}, {whose} {tuple(own[name].shape)}")
        elif own[name].dtype != sent[name].dtype:
            problems.append(f"{name}: {what} {sent[name].dtype}, {whose} {own[name].dtype}")
    return problems


def _json(path: Path, header: str) -> dict[str, Any]:
    try:
        about = json.loads(header)
        if about["format"] == FORMAT:
            return about
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise InputError(f"the header of '{path}' is damaged")
