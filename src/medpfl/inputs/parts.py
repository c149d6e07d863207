"""Conversion of user input into the objects that an audit works with."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from torch import nn

from medpfl import attacks as attack_package
from medpfl import data as data_package
from medpfl import defenses as defense_package
from medpfl import models as model_package
from medpfl.attacks import matching
from medpfl.core.errors import InputError
from medpfl.core.experiments.groups import Reading
from medpfl.core.experiments.limits import CLIENTS, check_whole, shortened
from medpfl.core.messages import PRIVATE_FOLDER, about
from medpfl.core.records.record import Record
from medpfl.core.roles import NO_DEFENSE, UNITS, Attack, DataSource, Defense, Model
from medpfl.core.spec import Part, build, check_part, check_text, expand, registry
from medpfl.core.user_code.copies import copied
from medpfl.core.user_code.loading import at_home, find, is_place, parted
from medpfl.data import partition as partition_module
from medpfl.data.choose import embedded, source_at
from medpfl.data.images import LabelledImages
from medpfl.data.partition import Partition
from medpfl.inputs.checkpoint import checkpoint_at, is_checkpoint
from medpfl.inputs.spelling import check_model_name, check_source, is_there, names_a_source, path_of
from medpfl.isolation.parent import Worker
from medpfl.models.user import UserModel
from medpfl.models.wrapped import unwrapped
from medpfl.runs.directory import holds_a_run
from medpfl.runs.environment import explained

__all__ = [
    "Given",
    "GivenModel",
    "attacks_of",
    "data_of",
    "defenses_given",
    "defenses_of",
    "is_record",
    "model_of",
    "partition_of",
    "source_of",
]

T = TypeVar("T")


class Given(NamedTuple):
    """An attack or defense with its single spec; ``None`` if an object was given."""

    part: Any
    text: str | None = None


@dataclass(frozen=True, repr=False)
class GivenModel(Model):
    """A user's network, with its weights unchanged."""

    network: nn.Module = field(repr=False)
    name: str = ""

    def build(self, image_shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
        """Return a copy: passes in train mode change batch-norm statistics, and a record replaces the weights."""
        return copied(unwrapped(self.network))


def model_of(model: str | Path | Model | nn.Module) -> Model:
    """Return a model from a spec, a ``place:name``, a training or round directory, a `Model` or a network."""
    if isinstance(model, Model):
        check_part(model)
        return model
    if isinstance(model, nn.Module):
        return GivenModel(model, type(unwrapped(model)).__name__)
    folder = at_home(model)
    if str(model) and is_checkpoint(folder):
        return checkpoint_at(folder)
    model = str(model)
    check_text(model, "model")
    if is_place(model):
        return UserModel.parse(model)
    if model.endswith(".py") or model.partition("(")[0].endswith(".py"):
        raise InputError(f"model '{model}': add the function that makes it, as in {model}:make_model")
    if model and folder.is_dir():
        raise InputError(f"model '{model}' is a folder without training rounds (round-0, round-1, ...)")
    check_model_name(model)
    return build(model, registry(model_package), "model")


def attacks_of(attacks: Iterable[str | Attack], worker: Worker | None = None) -> list[Attack]:
    """Return attacks from specs, a user's ``place:Name``, or attack objects; expand sweeps and drop duplicates.

    Args:
        attacks: specs or attack objects.
        worker: process that builds isolated attacks, so that their code is not imported here.
    """
    known, nested = registry(attack_package), registry(matching)

    def make(text: str) -> Attack:
        apart = worker is not None and worker.takes(text)
        return worker.attack(text) if apart else _made(text, known, "attack", nested)  # type: ignore[union-attr]

    return [one.part for one in _each(_listed(attacks), Attack, make)]


def defenses_of(defenses: Iterable[str | Defense]) -> list[Defense]:
    """Return the undefended control, then the given defenses."""
    return [one.part for one in defenses_given(defenses)]


def defenses_given(defenses: Iterable[str | Defense]) -> list[Given]:
    """Return the same as `defenses_of`, each with its spec, which may contain a path."""
    known = registry(defense_package)
    return _each([NO_DEFENSE, *_listed(defenses)], Defense, lambda text: _made(text, known, "defense"))


def _made(text: str, known: Mapping[str, Any], role: str, nested: Mapping[str, Any] | None = None) -> Any:
    """Build a part from a spec, whose first name may be the user's own, ``file.py:Name(argument=value)``."""
    check_text(text, role)
    if found := parted(text):
        place, text = found
        if (own := re.match(r"\s*(\w+)", text)) is None:
            raise InputError(
                f"{role} '{place}:{text}': write its name after the colon, as in {place}:Name(argument=value)"
            )
        if own[1] in known:
            raise InputError(f"'{place}' calls its {role} '{own[1]}', but MedPFL already has that name: rename it")
        known = {**known, own[1]: find(place, own[1], role)}
    with explained(f"{role} '{text}' failed"):
        return build(text, known, role, nested)


def _listed(items: Any) -> list[Any]:
    """Return a list; a single spec or part becomes a list of one."""
    return list(items) if isinstance(items, Iterable) and not isinstance(items, str) else [items]


def _each(items: Iterable[Any], role: type[T], make: Any) -> list[Given]:
    texts = [one for item in items for one in (expand(item) if isinstance(item, str) else [item])]
    given = [Given(make(one), one) if isinstance(one, str) else Given(one) for one in texts]
    made = [one.part for one in given]
    for one in made:
        if not isinstance(one, role):
            raise InputError(
                f"{one!r} cannot be used as {role.__name__.lower()}: give a spec or an object of that role"
            )
        check_part(one)
        _check_spec(one)
        if isinstance(one, Attack) and type(one).__call__ is Attack.__call__:
            one(None, None)  # type: ignore[arg-type]  (raises the error that names what is missing)
    with explained(f"cannot write the {role.__name__.lower()}s as specs"):
        homes = {(repr(one), type(one).__module__, type(one).__qualname__) for one in made}
        _ = [one.where for one in made if isinstance(one, Defense)]  # a property, which may fail
    for one in made:  # only now, when each is known to have a spec
        if isinstance(one, Defense):
            with explained(f"cannot determine the privacy unit of {one!r}"):
                _check_unit(one)
    if twins := [text for text, count in Counter(text for text, *_ in homes).items() if count > 1]:
        raise InputError(f"two different classes have the spec {twins[0]}: rename one, so that rows tell them apart")
    return list({repr(one.part): one for one in given}.values())


def _check_spec(part: Any) -> None:
    """Check that a part, and each of its parts, has a spec: otherwise rows could not name it.

    Raises:
        InputError: one has none.
    """
    for one in getattr(part, "parts", (part,)):
        if type(one).__repr__ is Part.__repr__ and not is_dataclass(one):
            raise InputError(
                f"{type(one).__name__} is not a dataclass, so its settings have no names: put "
                "@dataclass(frozen=True, repr=False) above the class"
            )


def _check_unit(defense: Defense) -> None:
    """Check that a defense with differential privacy states its privacy unit, and the reverse.

    Otherwise its epsilon would silently be missing from the report.

    Raises:
        InputError: the unit or the mechanism is missing, or the unit is unknown.
    """
    for part in getattr(defense, "parts", (defense,)):
        promising = [name for name in ("mechanism", "spent", "promises") if part.acts(name)]
        if part.unit is None and promising:
            raise InputError(f"{part!r} has {promising[0]}() but no privacy unit: set unit to {_units()}")
        if part.unit is not None and part.unit not in UNITS:
            raise InputError(f"{part!r} has the unit {part.unit!r}: set unit to {_units()}, or to None")
        if part.unit is not None and not promising:
            raise InputError(
                f"{part!r} has the privacy unit {part.unit!r} but no epsilon: override mechanism(), or "
                "spent() if the mechanism is not Gaussian"
            )


def _units() -> str:
    return f"{', '.join(map(repr, UNITS[:-1]))} or {UNITS[-1]!r}"


def partition_of(partition: object, clients: int | None = None) -> Partition:
    """Return a partition from a spec or a partition, with the given number of clients if there is one."""
    if not isinstance(partition, str | Partition):
        raise InputError(f"{shortened(partition)} cannot be used as partition: give a spec or an object of that role")
    made = partition if isinstance(partition, Partition) else build(partition, registry(partition_module), "partition")
    check_part(made)
    if clients is None:
        return made
    check_whole("clients", clients, 1, CLIENTS)
    if not hasattr(made, "clients"):
        raise InputError(f"{made!r} sets the number of clients itself: leave out --clients")
    return replace(made, clients=clients)  # type: ignore[type-var]  (it has the field)


def is_record(data: Any) -> bool:
    """Return True if the data is the path of a recorded update."""
    return isinstance(data, str | Path) and is_there(str(data)) and Record.is_one(path_of(data))


class Found(NamedTuple):
    """Images loaded from a source.

    Attributes:
        images: the loaded images.
        source: the source's name in all output, without its path.
        place: location, shown only in the terminal and the key file.
        reader: the data source; its code is part of the run's identity.
    """

    images: LabelledImages
    source: str
    place: str
    reader: DataSource | None = None


def data_of(data: str | Path | DataSource | LabelledImages, reading: Reading) -> Found:
    """Return the images from a folder, a spec, a source or an object."""
    if isinstance(data, LabelledImages):
        return Found(data, "images", "images")
    source = data if isinstance(data, DataSource) else source_of(str(data), reading)
    path = getattr(source, "path", None)
    # Resolved, so that study indices do not depend on how the path is written.
    place = type(source).__name__ if path is None else str(path_of(path).resolve())
    for place_of in (path, getattr(source, "labels", None)):
        about(place_of if isinstance(place_of, str | Path) else None)
    if path is not None:
        _check_no_run(path_of(path))
    _check_spec(source)
    with explained("the images cannot be read"):
        images, called = source.load(), repr(source)
    if not isinstance(images, LabelledImages):
        raise InputError(f"{called}: load() returned a {type(images).__name__}, not LabelledImages")
    return Found(images, called, place, source)


def _check_no_run(folder: Path) -> None:
    """Check that the folder holds no run directory, whose pictures would be taken for data.

    Raises:
        InputError: it holds one.
    """
    if not folder.is_dir():
        return
    try:
        folders = [folder, *sorted(folder.iterdir()), *_around(folder.resolve())]
    except OSError as error:
        raise InputError(f"cannot open the folder '{folder}': {error.strerror}") from None
    for inside in folders:
        if holds_a_run(inside):
            raise InputError(
                f"'{inside}' is a run directory, and its pictures are results, not data: give a folder without "
                f"it, or rebuild its pages with 'medpfl report {inside}'"
            )


def _around(folder: Path) -> list[Path]:
    """Return the run directory whose private folder contains this folder, as a list of at most one."""
    return [inside.parent for inside in (folder, *folder.parents) if inside.name == PRIVATE_FOLDER]


def source_of(data: str, reading: Reading) -> DataSource:
    """Return the source for a path, a spec or a user's ``place:Name``; a spec states all settings, not `reading`."""
    about(data if is_there(data) else None)
    if data == "samples":
        return embedded(size=reading.size, fit=reading.fit, channels=reading.channels)
    if names_a_source(data):
        made = _made(data, registry(data_package), "data source")
        if not isinstance(made, DataSource):
            raise InputError(f"{shortened(made)} is no data source: derive its class from medpfl.DataSource")
        return made
    check_source(data)
    return source_at(data, size=reading.size, fit=reading.fit, channels=reading.channels)
