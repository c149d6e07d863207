"""What a user gives, as the objects that the audit works with."""

from __future__ import annotations

import copy
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
from medpfl.auditing.checkpoint import checkpoint_at, is_checkpoint
from medpfl.auditing.early import check_model, check_source
from medpfl.auditing.engine import explained
from medpfl.core.errors import InputError
from medpfl.core.limits import CLIENTS, check_whole
from medpfl.core.place import find, is_place
from medpfl.core.records import Record
from medpfl.core.roles import Attack, DataSource, Defense, Model
from medpfl.core.spec import Part, build, check_part, check_text, expand, registry
from medpfl.data import partition as partition_module
from medpfl.data.choose import source_at
from medpfl.data.images import LabelledImages
from medpfl.data.partition import Partition
from medpfl.data.samples import Samples
from medpfl.defenses import NoDefense
from medpfl.models.user import UserModel

__all__ = ["GivenModel", "attacks_of", "data_of", "defenses_of", "is_record", "model_of", "partition_of", "source_of"]

T = TypeVar("T")


@dataclass(frozen=True, repr=False)
class GivenModel(Model):
    """A network that the user made; its weights are as they are."""

    network: nn.Module = field(repr=False)
    name: str = ""

    def build(self, image_shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
        """A copy: a forward pass in train mode changes batch-norm statistics, and a record its weights."""
        return copy.deepcopy(self.network)


def model_of(model: str | Path | Model | nn.Module) -> Model:
    """From a spec, a user's ``place:name``, the directory of a training or of its round, a `Model` or a network."""
    if isinstance(model, Model):
        check_part(model)
        return model
    if isinstance(model, nn.Module):
        return GivenModel(model, type(model).__name__)
    if is_checkpoint(model):
        return checkpoint_at(Path(model))
    model = str(model)
    check_text(model, "model")
    if is_place(model):
        return UserModel.parse(model)
    if model.partition("(")[0].endswith(".py"):
        raise InputError(f"model '{model}': say which function makes it, {model}:make_model")
    if Path(model).is_dir():
        raise InputError(f"model '{model}' is a folder without a round of a training (round-0, round-1, ...)")
    check_model(model)
    return build(model, registry(model_package), "model")


def attacks_of(attacks: Iterable[str | Attack]) -> list[Attack]:
    """From specs, the user's own ``place:Name``, and attacks; sweeps are expanded, repetitions left out."""
    known, nested = registry(attack_package), registry(matching)
    return _each(_listed(attacks), Attack, lambda text: _made(text, known, "attack", nested))


def defenses_of(defenses: Iterable[str | Defense]) -> list[Defense]:
    """The undefended control first, then the defenses given."""
    known = registry(defense_package)
    return _each([NoDefense(), *_listed(defenses)], Defense, lambda text: _made(text, known, "defense"))


def _made(text: str, known: Mapping[str, Any], role: str, nested: Mapping[str, Any] | None = None) -> Any:
    """From a spec; its first name may be the user's own, ``file.py:Name(argument=value)``."""
    check_text(text, role)
    if is_place(text):
        place = text.partition("(")[0].rpartition(":")[0]
        text = text[len(place) + 1 :]
        if (own := re.match(r"\s*(\w+)", text)) is None:
            raise InputError(f"{role} '{place}:{text}': after the colon write its name, {place}:Name(argument=value)")
        if own[1] in known:
            raise InputError(f"'{place}' calls its {role} '{own[1]}', as one of ours is called: give it another name")
        known = {**known, own[1]: find(place, own[1], role)}
    with explained(f"{role} '{text}' failed"):
        return build(text, known, role, nested)


def _listed(items: Any) -> list[Any]:
    """One spec or part stands for a list of one."""
    return list(items) if isinstance(items, Iterable) and not isinstance(items, str) else [items]


def _each(items: Iterable[Any], role: type[T], make: Any) -> list[T]:
    made = [one for item in items for one in ([item] if not isinstance(item, str) else map(make, expand(item)))]
    for one in made:
        if not isinstance(one, role):
            raise InputError(f"{one!r} is no {role.__name__.lower()}: give a spec string or an object of that role")
        check_part(one)
        _check_spec(one)
    homes = {(repr(one), type(one).__module__, type(one).__qualname__) for one in made}
    if twins := [text for text, count in Counter(text for text, *_ in homes).items() if count > 1]:
        raise InputError(f"two different classes are both written {twins[0]}: rename one, so that rows tell them apart")
    return list({repr(one): one for one in made}.values())


def _check_spec(part: Any) -> None:
    """Raises `InputError` for a part, or a part of one, that has no spec: rows could not name it."""
    for one in getattr(part, "parts", (part,)):
        if type(one).__repr__ is Part.__repr__ and not is_dataclass(one):
            raise InputError(
                f"{type(one).__name__} is no dataclass, so that nothing names its settings: put "
                "@dataclass(frozen=True, repr=False) above the class"
            )


def partition_of(partition: str | Partition, clients: int | None = None) -> Partition:
    """From a spec or a partition; with so many clients, if that is given."""
    made = partition if isinstance(partition, Partition) else build(partition, registry(partition_module), "partition")
    check_part(made)
    if clients is None:
        return made
    check_whole("clients", clients, 1, CLIENTS)
    if not hasattr(made, "clients"):
        raise InputError(f"{made!r} says itself how many clients there are: leave out --clients")
    return replace(made, clients=clients)  # type: ignore[type-var]  (it has the field)


def is_record(data: Any) -> bool:
    """Whether the data is the path of a recorded update."""
    return isinstance(data, str | Path) and Path(data).is_file() and Record.is_one(Path(data))


class Found(NamedTuple):
    """The images of a source.

    Attributes:
        images: what it holds.
        source: how it is called in what is written, without its path.
        place: where it is; for the terminal and the key file only.
    """

    images: LabelledImages
    source: str
    place: str


def data_of(data: str | Path | DataSource | LabelledImages, size: int, fit: str, channels: int | None) -> Found:
    """The images that a folder, a spec, a source or the user himself gives."""
    if isinstance(data, LabelledImages):
        return Found(data, "images", "images")
    source = data if isinstance(data, DataSource) else source_of(str(data), size, fit, channels)
    path = getattr(source, "path", None)
    # The same folder, however it is spelled, has the same study indices.
    place = type(source).__name__ if path is None else str(Path(path).expanduser().resolve())
    if path is not None:
        _check_no_run(Path(path).expanduser())
    with explained("the images cannot be read"):
        return Found(source.load(), repr(source), place)


def _check_no_run(folder: Path) -> None:
    """Raises `InputError` if the pictures that audits wrote would be taken for data."""
    if not folder.is_dir():
        return
    for inside in [folder, *sorted(folder.iterdir())]:
        if (inside / "run.json").is_file() and (inside / "findings.jsonl").is_file():
            raise InputError(
                f"'{inside}' is the run directory of an audit, whose pictures are no data: give a folder of class "
                f"folders without it, or make its pages again with 'medpfl report {inside}'"
            )


def source_of(data: str, size: int, fit: str, channels: int | None) -> DataSource:
    """From a path or a spec."""
    if data == "samples":
        return Samples(size=size, fit=fit, channels=channels)  # type: ignore[arg-type]  (it checks fit)
    if "(" in data and not Path(data).exists():
        return build(data, registry(data_package), "data source")
    check_source(data)
    return source_at(data, size=size, fit=fit, channels=channels)
