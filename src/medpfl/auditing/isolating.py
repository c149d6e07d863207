"""Which attacks of an audit run in a process of their own, and what it says of that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from medpfl import attacks as attack_package
from medpfl import defenses as defense_package
from medpfl import models as model_package
from medpfl.auditing.defense_parts import at_client, parts_of
from medpfl.auditing.recorded import Recorded, behind
from medpfl.core.errors import InputError
from medpfl.core.experiments.settings import Settings
from medpfl.core.roles import NO_DEFENSE, Attack, Defense, Model
from medpfl.core.spec import registry
from medpfl.core.user_code.loading import is_place
from medpfl.inputs.checkpoint import Checkpoint
from medpfl.inputs.parts import Given, attacks_of
from medpfl.isolation.parent import Isolated, Scene, Worker, absolute, started
from medpfl.isolation.system import active
from medpfl.models.user import UserModel

__all__ = ["Isolation", "Recipe", "isolating"]

NO_SANDBOX = (
    "A process of its own keeps an attack from the audit's memory, open files and environment. It is no sandbox: the "
    "attack runs as the same user, and can read every file that this user can."
)
IN_REACH = (
    "Your own attack ran in the audit's own process, where it could reach the private images by force. Its rows are "
    "worth as much as its code."
)
_PLACE = "give it as file.py:Name or package.module:Name"
_HINT = "--no-isolate, or isolate=False, runs attacks in the audit's own process"


@dataclass(frozen=True)
class Recipe:
    """How another process makes the model and the defenses again.

    Attributes:
        model: ``{"spec": text}``, or ``{"trained": ...}``, what a checkpoint says of itself.
        defenses: specs of the defenses that are given by their place, by the ``repr`` of what acts at the client.
    """

    model: dict[str, Any]
    defenses: dict[str, str] = field(default_factory=dict)

    def scene(self, layers: Defense, told: Defense, image_shape: tuple[int, ...], classes: int, device: str) -> Scene:
        """The model with a defense's layers, and the channel of a defense; see `Scene`.

        Of a recorded update, the model is as it is, and the channel that of the defense behind the record.
        """
        bare = NO_DEFENSE if isinstance(layers, Recorded) else layers
        specs = (self._spec(bare), self._spec(behind(told)))
        return Scene(self.model, *specs, image_shape, classes, device)

    def _spec(self, defense: Defense) -> str:
        own = repr(at_client(defense))
        return self.defenses.get(own, own)


@dataclass(frozen=True)
class Isolation:
    """What an audit does about isolation.

    Attributes:
        worker: of the attacks in a process of their own; ``None`` where there are none.
        recipe: for it.
        attacks: those of the audit, as they are to be given to `medpfl.inputs.parts.attacks_of`.
        notes: what to say of it.
    """

    worker: Worker | None
    recipe: Recipe | None
    attacks: list[str | Attack]
    notes: tuple[str, ...] = ()

    def as_these(self, attacks: Sequence[Attack]) -> list[Attack]:
        """Attacks of ours that are added to the audit's, where these run."""
        if self.worker is None or not self.worker.every:
            return list(attacks)
        return attacks_of([one if isinstance(one, Isolated) else repr(one) for one in attacks], self.worker)

    def added_to(self, settings: Settings, attacks: Sequence[Attack]) -> Settings:
        """Return the settings of an audit, with what the page prints of the isolation of its attacks.

        Nothing is added where every attack is one of ours, in the audit's own process.
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
    """Starts the process for the attacks that run in one of their own, and ends it with the block.

    Args:
        attacks: as they were given.
        isolate: all of them; ``None``: those that are given by their place, if that is possible; or none.
        model: of the audit.
        defenses: of the audit.

    Raises:
        InputError: `isolate` asks for what is not possible.
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
    """Why attacks cannot run in a process of their own; ``""`` if they can."""
    for attack in attacks:
        if isinstance(attack, Attack) and not _ours(attack, attack_package):
            return f"attack {type(attack).__name__} is an object, whose code another process cannot find: {_PLACE}"
    if not isinstance(model, UserModel | Checkpoint) and not _ours(model, model_package):
        name = getattr(model, "name", type(model).__name__)
        return (
            f"the model {name} is an object, which another process cannot make again: {_PLACE}, and its weights as a "
            "file"
        )
    for given in defenses:
        if given.text is None and not all(_ours(part, defense_package) for part in parts_of(behind(given.part))):
            return f"the defense {given.part!r} is an object, which another process cannot make again: {_PLACE}"
    return ""


def _ours(part: Any, package: Any) -> bool:
    return type(part) in registry(package).values()


def _recipe(model: Model) -> dict[str, Any]:
    if isinstance(model, Checkpoint):
        return {"trained": asdict(replace(model.about, seed=0))}  # what its seed drew is in the weights
    if isinstance(model, UserModel):
        return {"spec": absolute(f"{model.place}:{model.call}")}
    return {"spec": repr(model)}
