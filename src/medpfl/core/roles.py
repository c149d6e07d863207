"""The roles that parts play. A new part is one file, one line in its package's ``__all__``, one test row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from medpfl.core.errors import InputError
from medpfl.core.spec import Part

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from medpfl.core.channels.exchange import Exchange, MaskedVector
    from medpfl.core.plan import Plan
    from medpfl.core.privacy.accountant import Epsilon
    from medpfl.core.privacy.tradeoff import Mechanism
    from medpfl.core.types import Batch, Channel, Observation, Reconstruction, Tensors, Update

    Sums = tuple[Tensors, dict[str, Any]] | None

__all__ = [
    "NO_DEFENSE",
    "UNITS",
    "Aggregation",
    "Attack",
    "Composed",
    "DataSource",
    "Defense",
    "Metric",
    "Model",
    "NoDefense",
    "State",
    "Unit",
    "metric",
]

Unit = Literal["image", "patient", "client"]
"""Whose data differential privacy protects: an image, all images of a patient, or all that a client holds."""
UNITS: tuple[Unit, ...] = get_args(Unit)

State = dict[str, Any]
"""What a defense remembers between rounds: tensors, numbers, and dictionaries of them."""


class Attack(Part):
    """Reads images back from what the server saw. Final classes are frozen dataclasses."""

    specialized: ClassVar[bool] = False
    """True if it is made for some kinds of models: where `check` accepts one, an audit suggests it, or adds it."""

    def __call__(self, seen: Observation, generator: torch.Generator) -> Reconstruction:
        """Return the guesses for all victims of an observation whose model and plans `check` accepts.

        It changes nothing of the observation, and makes its tensors on the device of the update.

        Args:
            seen: what the adversary has; no private image is in it.
            generator: on the CPU; the only source of randomness.
        """
        raise NotImplementedError

    def check(self, model: nn.Module, plans: tuple[Plan, ...], image_shape: tuple[int, ...]) -> None:
        """Raise `InputError` if the attack does not take such an update. This declares what it takes; by default all.

        An audit asks before any work, and calls the attack on nothing that is refused here.

        Args:
            model: as it is attacked, made ready for the plan.
            plans: of the clients in an update; several under secure aggregation.
            image_shape: (C, H, W) or (C, D, H, W).
        """

    def suited(self, model: nn.Module) -> tuple[Attack, ...]:
        """Itself with settings for such a model, to be run too; none where its own will do, or were chosen."""
        return ()

    def prepare(self, model: nn.Module) -> nn.Module:
        """What an active server sends instead of the model (grant ``active``); the model itself here."""
        return model


@dataclass(frozen=True)
class Aggregation:
    """Way in which the server gets the mean of several clients' updates.

    Attributes:
        messages: what the server has of a single client. ``"hidden"``: nothing. ``"masked"``: a masked message, which
            an audit attacks too, read by `Defense.read`. ``"encrypted"``: a ciphertext; the server is
            then assumed to get the decrypted mean in clear from a client.
        needs: what the plan must send beside the update for there to be a mean: ``"num_samples"``, its weights.
    """

    messages: Literal["hidden", "masked", "encrypted"] = "hidden"
    needs: tuple[str, ...] = ()


class Defense(Part):
    """Changes what leaves a client. Five moments, each the identity unless overridden; compose with ``|``.

    Moments are pure: they take a value, the defense's state and a generator, and return the new value
    and the new state.
    """

    where: ClassVar[Literal["client", "server"]] = "client"
    """Where it acts. What only the server does cannot protect from the server."""

    unit: ClassVar[Unit | None] = None
    """Whose differential privacy it promises, by `mechanism` or `spent`; ``None``: it promises none."""

    aggregation: ClassVar[Aggregation] = Aggregation()
    """Way in which the server gets the mean, of a defense that acts in `aggregate`."""

    def init(self) -> State:
        """The state before the first round."""
        return {}

    def model(self, value: nn.Module, state: State, generator: torch.Generator) -> tuple[nn.Module, State]:
        """Before anything: replaces layers."""
        return value, state

    def batch(self, value: Batch, state: State, generator: torch.Generator) -> tuple[Batch, State]:
        """Before local training: changes images or labels."""
        return value, state

    def gradient(self, value: Tensors, state: State, generator: torch.Generator) -> tuple[Tensors, State]:
        """Inside a local step: the per-sample gradients, (N, ...) each.

        Their sum over the plan's batch size becomes the step's gradient: the mean, except under Poisson
        sampling, where N is random (an empty batch is one row of zeros).
        """
        return value, state

    def summed(self, parts: Iterator[Tensors], state: State, generator: torch.Generator) -> Sums:
        """What `gradient` gives, summed over the images, which come in parts; ``None``: it must see all at once."""
        return None

    def update(self, value: Update, state: State, generator: torch.Generator) -> tuple[Update, State]:
        """What leaves the client."""
        return value, state

    def aggregate(
        self, value: Sequence[Update], state: State, generator: torch.Generator
    ) -> tuple[Sequence[Update], State]:
        """What the server gets from several clients: all of them here, one sum under secure aggregation."""
        return value, state

    def exchange(self, updates: Sequence[Update], generator: torch.Generator) -> Exchange:
        """Play a round of a defense that acts in `aggregate`, and return what the server has at its end.

        Raises:
            InputError: the server gets another number of updates than one.
        """
        from medpfl.core.channels.exchange import Exchange

        made, _ = self.aggregate(updates, self.init(), generator)
        if len(made) != 1:
            raise InputError(f"{self!r}: the server gets {len(made)} updates, and not one sum")
        samples = [update.num_samples for update in updates]
        total = None if None in samples else sum(n or 0 for n in samples)
        return Exchange({}, (), replace(made[0], num_samples=total))

    def staying(self, clients: int) -> int:
        """Return how many of the clients of a round are in the mean; the others fall silent."""
        return clients

    def read(self, masked: MaskedVector, like: Update) -> Update:
        """Return a masked message read as if it were an update; needed where `aggregation` says ``"masked"``.

        Args:
            masked: of one client.
            like: an update with the same tensors.
        """
        raise NotImplementedError

    def disclose(self, sent: Update, plan: Plan | None = None, before: Channel | None = None) -> Channel:
        """What is publicly known of the change, from the defense's settings, the plan and the sent update alone.

        Args:
            sent: the update that left the client, after all parts of the defense.
            plan: of the client.
            before: what the parts before this one disclose; the result is that, followed by this part's
                own (`Channel.then`). Where later parts change the update in a way that cannot be undone, it is an
                approximation.
        """
        from medpfl.core.types import Channel

        return before or Channel()

    def settled(self, first: bool) -> bool:
        """Whether what it discloses follows from its settings and the plan: it then holds of each client of a sum.

        What is read off a sent update does not: under secure aggregation no client's update is sent.

        Args:
            first: no part before this one discloses anything.
        """
        return True

    def mechanism(self, plan: Plan, rounds: int) -> Mechanism | None:
        """Return the Gaussian mechanism that the adversary sees of one `unit`; ``None``: there is none.

        Epsilon (`spent`) and the bound on the success of any attack follow from it.

        Args:
            plan: of the client.
            rounds: of this client that the adversary sees, at least 1.
        """
        return None

    def spent(self, plan: Plan, rounds: int, delta: float) -> Epsilon | float | None:
        """Return the epsilon of one `unit` over the rounds of a client that the adversary sees; ``None``: no promise.

        That of the `mechanism`, by two accountants. A defense whose mechanism is another one returns a number.

        Args:
            plan: of the client.
            rounds: of this client that the adversary sees, at least 1.
            delta: in (0, 1), well below one over the units that a client has.

        Raises:
            InputError: a number out of its range, or the extra ``dp`` is not installed.
        """
        from medpfl.core.privacy.accountant import epsilon

        seen = self.mechanism(plan, rounds)
        return None if seen is None else epsilon(seen.noise, seen.rate, seen.steps, delta)

    def promises(self, plan: Plan, rounds: int, delta: float) -> float | None:
        """Return `spent` as a number."""
        found = self.spent(plan, rounds, delta)
        return found if found is None or isinstance(found, int | float) else found.value

    def acts(self, moment: str) -> bool:
        """Whether it overrides a moment."""
        return getattr(type(self), moment) is not getattr(Defense, moment)

    def __or__(self, other: Defense) -> Defense:
        """This defense, then the other."""
        return Composed((*_parts(self), *_parts(other)))


@dataclass(frozen=True, repr=False)
class NoDefense(Defense):
    """The update leaves the client as it is: the control beside every defense."""


NO_DEFENSE: Defense = NoDefense()
"""The undefended control."""


def _parts(defense: Defense) -> tuple[Defense, ...]:
    return defense.parts if isinstance(defense, Composed) else (defense,)


@dataclass(frozen=True, repr=False)
class Composed(Defense):
    """Several defenses, one after the other at each moment."""

    parts: tuple[Defense, ...] = ()

    @property
    def where(self) -> Literal["client", "server"]:  # type: ignore[override]  (a field elsewhere)
        """At the client if any part acts there."""
        return "client" if any(p.where == "client" for p in self.parts) else "server"

    def init(self) -> State:
        """The parts' states by position."""
        return {str(i): part.init() for i, part in enumerate(self.parts)}

    def _through(self, moment: str, value: Any, state: State, generator: torch.Generator) -> tuple[Any, State]:
        after = {}
        for i, part in enumerate(self.parts):
            value, after[str(i)] = getattr(part, moment)(value, state[str(i)], generator)
        return value, after

    def model(self, value: nn.Module, state: State, generator: torch.Generator) -> tuple[nn.Module, State]:
        """Each part's, in order."""
        return self._through("model", value, state, generator)

    def batch(self, value: Batch, state: State, generator: torch.Generator) -> tuple[Batch, State]:
        """Each part's, in order."""
        return self._through("batch", value, state, generator)

    def gradient(self, value: Tensors, state: State, generator: torch.Generator) -> tuple[Tensors, State]:
        """Each part's, in order."""
        return self._through("gradient", value, state, generator)

    def summed(self, parts: Iterator[Tensors], state: State, generator: torch.Generator) -> Sums:
        """Of the only part that acts on gradients."""
        acting = [str(i) for i, part in enumerate(self.parts) if part.acts("gradient")]
        made = self.parts[int(acting[0])].summed(parts, state[acting[0]], generator) if len(acting) == 1 else None
        return made and (made[0], {**state, acting[0]: made[1]})

    def update(self, value: Update, state: State, generator: torch.Generator) -> tuple[Update, State]:
        """Each part's, in order."""
        return self._through("update", value, state, generator)

    def aggregate(
        self, value: Sequence[Update], state: State, generator: torch.Generator
    ) -> tuple[Sequence[Update], State]:
        """Each part's, in order."""
        return self._through("aggregate", value, state, generator)

    def disclose(self, sent: Update, plan: Plan | None = None, before: Channel | None = None) -> Channel:
        """From the first part to the last, what makes a sum after all others, each adding its own to those before it.

        Each part is asked of the update as it left that part: what later parts disclose is undone where it can be.
        Nothing of a sum if a part would have to see the single updates to say what it did to them (`settled`).
        """
        from medpfl.core.channels.decoding import decoded
        from medpfl.core.types import Channel

        if self.acts("aggregate") and not self.settled(before is None):
            return before or Channel()
        parts = sorted(self.parts, key=lambda part: part.acts("aggregate"))
        parts = [part for part in parts if part.acts("disclose")]
        left = [sent]
        for part in reversed(parts[1:]):
            left.insert(0, decoded(left[0], part.disclose(left[0], plan, Channel()))[0])
        asked = zip(parts, left, strict=True) if parts else ()
        return reduce(lambda known, one: one[0].disclose(one[1], plan, known), asked, before or Channel())

    def settled(self, first: bool) -> bool:
        """Whether every part is."""
        silent = [first and not any(p.acts("disclose") for p in self.parts[:i]) for i in range(len(self.parts))]
        return all(part.settled(none) for part, none in zip(self.parts, silent, strict=True))

    @property
    def counted(self) -> tuple[Defense, ...]:
        """Whose promises hold: of a part that acts inside steps, only if no other changes what enters them."""
        inside = [part for part in self.parts if any(map(part.acts, ("model", "batch", "gradient")))]
        return tuple(part for part in self.parts if not part.acts("gradient") or inside == [part])

    def promises(self, plan: Plan, rounds: int, delta: float) -> float | None:
        """Return the best that a part promises, of those that count."""
        known = [part.promises(plan, rounds, delta) for part in self.counted]
        return min((epsilon for epsilon in known if epsilon is not None), default=None)

    def acts(self, moment: str) -> bool:
        """Whether any part does; of a sum, that it discloses something only if it does (see `disclose`)."""
        found = any(part.acts(moment) for part in self.parts)
        return found and not (moment == "disclose" and self.acts("aggregate") and not self.settled(True))

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.parts))


class Model(Part):
    """Makes a network for images of a shape. Final classes are frozen dataclasses."""

    def build(self, image_shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
        """A network that maps (N, *image_shape) in [0, 1] to (N, num_classes) logits.

        Those of a network that segments are (N, num_classes, H, W), or (N, num_classes, D, H, W).

        Args:
            image_shape: (C, H, W).
            num_classes: outputs, unless the model's own arguments say otherwise.
            seed: of the untrained weights; the same seed gives the same weights.
        """
        raise NotImplementedError


class DataSource(Part):
    """Reads labelled images. Final classes are frozen dataclasses."""

    def __post_init__(self) -> None:
        """Raise `InputError` for an argument that is out of range; each base of a source checks its own."""

    def load(self) -> Any:
        """Return the images, as a `medpfl.data.images.LabelledImages`."""
        raise NotImplementedError

    def published(self, purpose: str) -> DataSource | None:
        """Return the set that was published to judge models trained on these images; ``None``: there is none.

        Args:
            purpose: ``"validation"`` or ``"test"``.
        """
        return None


@dataclass(frozen=True)
class Metric:
    """A pure function (guess, truth), both (N, C, H, W), to one number per image (N,).

    Attributes:
        function: the computation; guesses are clamped to [0, 1] unless the metric is a legacy one.
        unit: "" for a pure number.
        leak: ``"higher"`` or ``"lower"``: which direction means that more leaked.
        data_range: of the pixels.
        legacy: kept for comparison with the paper's notebooks only.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    unit: str
    leak: Literal["higher", "lower"]
    data_range: float = 1.0
    legacy: bool = False

    def __post_init__(self) -> None:
        self.__dict__.update(__doc__=self.function.__doc__, __name__=self.function.__name__)

    def __call__(self, guess: Tensor, truth: Tensor) -> Tensor:
        """One number per image."""
        return self.function(guess if self.legacy else guess.clamp(0, 1), truth)

    def __repr__(self) -> str:
        return self.function.__name__


def metric(
    *, unit: str, leak: Literal["higher", "lower"], data_range: float = 1.0, legacy: bool = False
) -> Callable[[Callable[[Tensor, Tensor], Tensor]], Metric]:
    """Makes a `Metric` of a function."""
    return lambda function: Metric(function, unit, leak, data_range, legacy)
