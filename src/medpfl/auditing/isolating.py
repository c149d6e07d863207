"""Isolation in an audit: which attacks run in a separate process, and the report's notes on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from medpfl import attacks as attack_package
from medpfl import defenses as defense_package
from medpfl import models as model_package
from medpfl.auditing.defense_parts import at_client
from medpfl.auditing.records.recorded import Recorded, behind
from medpfl.core.errors import InputError
from medpfl.core.experiments.settings import Settings
from medpfl.core.roles import NO_DEFENSE, Attack, Defense, Model, parts_of
from medpfl.core.spec import registry
from medpfl.core.user_code.loading import is_place
from medpfl.inputs.checkpoint import Checkpoint
from medpfl.inputs.parts import Given, attacks_of
from medpfl.isolation.parent import Isolated, Scene, Worker, absolute, started
from medpfl.isolation.system import active
from medpfl.models.entering import Entering
from medpfl.models.user import UserModel

__all__ = ["Isolation", "Recipe", "isolating"]

NO_SANDBOX = (
    "A separate process keeps an attack away from the audit's memory, open files and environment. It is no sandbox: "
    "the attack runs as the same user and can read every file that this user can."
)
IN_REACH = (
    "Your own attack ran in the audit's own process, where its code could reach the private images directly. Trust its "
    "results only as much as its code."
)
_PLACE = "give it as file.py:Name or package.module:Name"
_HINT = "to run attacks in the audit's own process, use --no-isolate or isolate=False"


@dataclass(frozen=True)
class Recipe:
    """Instructions from which another process rebuilds the model and the defenses.

    Attributes:
        model: ``{"spec": text}``, or ``{"trained": ...}`` with a checkpoint's description; with ``pixels`` if images
            enter it in another range than [0, 1].
        defenses: specs of the defenses given as ``file.py:Name`` or ``package.module:Name``, by the ``repr`` of the
            part that acts at the client.
    """

    model: dict[str, Any]
    defenses: dict[str, str] = field(default_factory=dict)

    def scene(self, layers: Defense, told: Defense, image_shape: tuple[int, ...], classes: int, device: str) -> Scene:
        """Return the scene: the model with the layers of `layers`, and the channel of `told`; see `Scene`.

        For a recorded update, the model stays as it is, and the channel belongs to the defense behind the record.
        """
        bare = NO_DEFENSE if isinstance(layers, Recorded) else layers
        specs = (self._spec(bare), self._spec(behind(told)))
        return Scene(self.model, *specs, image_shape, classes, device)

    def _spec(self, defense: Defense) -> str:
        own = repr(at_client(defense))
        return self.defenses.get(own, own)


@dataclass(frozen=True)
class Isolation:
    """An audit's isolation.

    Attributes:
        worker: process for the isolated attacks; ``None`` if there are none.
        recipe: recipe for the process.
        attacks: the audit's attacks, in the form for `medpfl.inputs.parts.attacks_of`.
        notes: notes for the report.
    """

    worker: Worker | None
    recipe: Recipe | None
    attacks: list[str | Attack]
    notes: tuple[str, ...] = ()

    def as_these(self, attacks: Sequence[Attack]) -> list[Attack]:
        """Return built-in attacks to add to the audit's, isolated if all of the audit's attacks are."""
        if self.worker is None or not self.worker.every:
            return list(attacks)
        return attacks_of([one if isinstance(one, Isolated) else repr(one) for one in attacks], self.worker)

    def added_to(self, settings: Settings, attacks: Sequence[Attack]) -> Settings:
        """Return an audit's settings, with the page's facts about isolation.

        Nothing is added if all attacks are built in and run in the audit's own process.
        """
        apart = [repr(attack) for attack in attacks if isinstance(attack, Isolated)]
        own = [repr(a) for a in attacks if not (isinstance(a, Isolated) or type(a).__module__.startswith("medpfl."))]
        if not apart and not own:
            return settings
        told = {
            "in a process of their own": apart,
            "in the audit's own process": [repr(one) for one in attacks if repr(one) not in apart],
            "operating system": (self.worker.system if self.worker else active()) or ["no isolation found"],
            "what it means": NO_SANDBOX if not own else IN_REACH,
        }
        return replace(settings, isolation=told, notes=(*settings.notes, *self.notes))


@contextmanager
def isolating(
    attacks: Sequence[str | Attack], isolate: bool | None, model: Model, defenses: Sequence[Given]
) -> Iterator[Isolation]:
    """Start the process for isolated attacks, and end it with the block.

    Args:
        attacks: the attacks as the user gave them.
        isolate: True isolates all attacks, False none; ``None`` isolates those given as ``file.py:Name`` or
            ``package.module:Name``, if possible.
        model: the audit's model.
        defenses: the audit's defenses.

    Raises:
        InputError: `isolate` is True, but isolation is impossible.
    """
    several = isinstance(attacks, Sequence) and not isinstance(attacks, str)
    given: list[str | Attack] = list(attacks) if several else [attacks]  # type: ignore[list-item]
    wanted = isolate if isolate is not None else any(isinstance(one, str) and is_place(one) for one in given)
    if not wanted:
        yield Isolation(None, None, given)
        return
    problem = _problem(given if isolate else [], model, defenses)
    if problem and isolate:
        raise InputError(f"isolate: {problem}; {_HINT}")
    if problem:
        yield Isolation(None, None, given, (f"Your own attack ran in the audit's own process: {problem}.",))
        return
    texts = {repr(at_client(behind(one.part))): absolute(one.text) for one in defenses if one.text is not None}
    told = [repr(one) if isolate and isinstance(one, Attack) else one for one in given]
    with started(every=bool(isolate)) as worker:
        yield Isolation(worker, Recipe(_recipe(model), texts), told)


def _problem(attacks: Sequence[str | Attack], model: Model, defenses: Sequence[Given]) -> str:
    """Return the reason why attacks cannot run in a separate process; ``""`` if they can."""
    for attack in attacks:
        if isinstance(attack, Attack) and not _ours(attack, attack_package):
            return f"attack {type(attack).__name__} is an object whose code another process cannot find: {_PLACE}"
    model = model.model if isinstance(model, Entering) else model
    if not isinstance(model, UserModel | Checkpoint) and not _ours(model, model_package):
        name = getattr(model, "name", type(model).__name__)
        return (
            f"the model {name} is an object that another process cannot rebuild: {_PLACE}, with its weights in a file"
        )
    for given in defenses:
        if given.text is None and not all(_ours(part, defense_package) for part in parts_of(behind(given.part))):
            return f"the defense {given.part!r} is an object that another process cannot rebuild: {_PLACE}"
    return ""


def _ours(part: Any, package: Any) -> bool:
    return type(part) in registry(package).values()


def _recipe(model: Model) -> dict[str, Any]:
    if isinstance(model, Entering):
        return {**_recipe(model.model), "pixels": model.pixels.to_dict()}
    if isinstance(model, Checkpoint):
        return {"trained": asdict(replace(model.about, seed=0))}  # the seed's draws are already in the weights
    if isinstance(model, UserModel):
        return {"spec": absolute(f"{model.place}:{model.call}")}
    return {"spec": repr(model)}
