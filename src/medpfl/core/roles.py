"""The roles of parts. To add a part: one file, one line in its package's ``__all__``, one test row."""

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
"""The privacy unit that differential privacy protects: an image, all images of a patient, or all data of a client."""
UNITS: tuple[Unit, ...] = get_args(Unit)

State = dict[str, Any]
"""A defense's state between rounds: tensors, numbers, and dictionaries of them."""


class Attack(Part):
    """Base class for attacks, which reconstruct images from an observation. Final classes are frozen dataclasses."""

    specialized: ClassVar[bool] = False
    """True if the attack is designed for certain models. If `check` accepts a model, an audit suggests it."""

    members: ClassVar[tuple[type[Attack], ...]] = ()
    """Attacks that this one runs where they apply, so that an audit need not suggest them."""

    def __call__(self, seen: Observation, generator: torch.Generator) -> Reconstruction:
        """Return the reconstructions for all victims of an observation whose model and plans `check` accepts.

        An attack must not modify the observation, and creates its tensors on the update's device.

        Args:
            seen: the attacker's observation; it contains no private image.
            generator: a CPU generator, the only source of randomness.
        """
        raise NotImplementedError

    def check(self, model: nn.Module, plans: tuple[Plan, ...], image_shape: tuple[int, ...]) -> None:
        """Raise `InputError` if the attack does not support such an update. By default, every update is supported.

        An audit calls this before any work, and never runs the attack on an update that is refused here.

        Args:
            model: the model under attack, prepared for the plan.
            plans: plans of the clients in an update; several under secure aggregation.
            image_shape: (C, H, W) or (C, D, H, W).
        """

    def suited(self, model: nn.Module) -> tuple[Attack, ...]:
        """Return variants of the attack with settings for this model, to be run as well.

        The result is empty if the attack's own settings suit the model, or if the user chose them.
        """
        return ()

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return the model that an active server sends (grant ``active``); by default, the given model."""
        return model


@dataclass(frozen=True)
class Aggregation:
    """Protocol by which the server gets the mean of several clients' updates.

    Attributes:
        messages: the server's data from a single client. ``"hidden"``: none. ``"masked"``: a masked message,
            which `Defense.read` interprets and an audit attacks too. ``"encrypted"``: a ciphertext; a client is
            assumed to give the server the decrypted mean.
        needs: data that the plan must send besides the update to compute the mean: ``"num_samples"``, its weights.
    """

    messages: Literal["hidden", "masked", "encrypted"] = "hidden"
    needs: tuple[str, ...] = ()


class Defense(Part):
    """Base class for defenses, which change training or updates. Defenses compose with ``|``.

    A defense overrides one or more of five moments: `model`, `batch`, `gradient`, `update` and `aggregate`. Each is the
    identity by default. Moments are pure: they take a value, the defense's state and a generator, and return the new
    value and the new state.
    """

    where: ClassVar[Literal["client", "server"]] = "client"
    """The place where it acts. A defense that acts only at the server cannot protect against the server."""

    unit: ClassVar[Unit | None] = None
    """The privacy unit of its differential privacy (see `mechanism`, `spent`); ``None`` if it promises none."""

    covers_buffers: ClassVar[bool] = False
    """True if its differential privacy also holds for batch-norm statistics that are sent."""

    aggregation: ClassVar[Aggregation] = Aggregation()
    """The protocol by which the server gets the mean, for a defense that acts in `aggregate`."""

    def init(self) -> State:
        """Return the state before the first round."""
        return {}

    def model(self, value: nn.Module, state: State, generator: torch.Generator) -> tuple[nn.Module, State]:
        """Change the model's layers, before everything else."""
        return value, state

    def batch(self, value: Batch, state: State, generator: torch.Generator) -> tuple[Batch, State]:
        """Change images or labels, before local training."""
        return value, state

    def gradient(self, value: Tensors, state: State, generator: torch.Generator) -> tuple[Tensors, State]:
        """Change the per-sample gradients, (N, ...) each, within a local step.

        Their sum divided by the plan's batch size becomes the step's gradient. This is the mean, except under Poisson
        sampling, where N is random (an empty batch is one row of zeros).
        """
        return value, state

    def summed(self, parts: Iterator[Tensors], state: State, generator: torch.Generator) -> Sums:
        """Return the result of `gradient` summed over images, which arrive in parts; ``None`` if it needs all at once.

        This saves memory: not all per-sample gradients are held at the same time.
        """
        return None

    def update(self, value: Update, state: State, generator: torch.Generator) -> tuple[Update, State]:
        """Change the update before it leaves the client."""
        return value, state

    def aggregate(
        self, value: Sequence[Update], state: State, generator: torch.Generator
    ) -> tuple[Sequence[Update], State]:
        """Turn the clients' updates into those that the server gets: by default all, for a sum one."""
        return value, state

    def exchange(self, updates: Sequence[Update], generator: torch.Generator) -> Exchange:
        """Simulate a round of a defense that acts in `aggregate`, and return the server's view at its end.

        Raises:
            InputError: `aggregate` does not return exactly one update.
        """
        from medpfl.core.channels.exchange import Exchange

        made, _ = self.aggregate(updates, self.init(), generator)
        if len(made) != 1:
            raise InputError(f"{self!r}: aggregate returns {len(made)} updates, it must return one sum")
        samples = [update.num_samples for update in updates]
        total = None if None in samples else sum(n or 0 for n in samples)
        return Exchange({}, (), replace(made[0], num_samples=total))

    def staying(self, clients: int) -> int:
        """Return how many of a round's clients are in the mean; the others drop out."""
        return clients

    def read(self, masked: MaskedVector, like: Update) -> Update:
        """Interpret a masked message as if it were an update; required if `aggregation.messages` is ``"masked"``.

        Args:
            masked: one client's masked message.
            like: an update with the same tensors.
        """
        raise NotImplementedError

    def disclose(self, sent: Update, plan: Plan | None = None, before: Channel | None = None) -> Channel:
        """Return what is publicly known about the change, given the defense's settings, the plan and the sent update.

        Args:
            sent: the update that left the client, after all parts of the defense.
            plan: the client's plan.
            before: disclosure of the parts before this one. The result is `before` followed by this part's own
                disclosure (`Channel.then`). It is an approximation if later parts change the update irreversibly.
        """
        from medpfl.core.types import Channel

        return before or Channel()

    def settled(self, first: bool) -> bool:
        """Return True if the disclosure depends only on settings and plan, and thus holds for each client in a sum.

        A disclosure that depends on a sent update's values does not hold there: under secure aggregation, no single
        client's update is sent.

        Args:
            first: True if no part before this one discloses anything.
        """
        return True

    def mechanism(self, plan: Plan, rounds: int) -> Mechanism | None:
        """Return the Gaussian mechanism that the attacker sees for one `unit`; ``None`` if there is none.

        Epsilon (`spent`) and the success bound of any attack follow from it.

        Args:
            plan: the client's plan.
            rounds: number of this client's rounds that the attacker sees, at least 1.
        """
        return None

    def spent(self, plan: Plan, rounds: int, delta: float) -> Epsilon | float | None:
        """Return epsilon for one `unit` over the client's rounds that the attacker sees; ``None`` without a promise.

        By default, two accountants compute it from `mechanism`. A defense with another mechanism returns a number.

        Args:
            plan: the client's plan.
            rounds: number of this client's rounds that the attacker sees, at least 1.
            delta: delta in (0, 1); it should be well below 1 / (units per client).

        Raises:
            InputError: a number is out of its range, or the extra ``dp`` is not installed.
        """
        from medpfl.core.privacy.accountant import epsilon

        seen = self.mechanism(plan, rounds)
        return None if seen is None else epsilon(seen.noise, seen.rate, seen.steps, delta)

    def promises(self, plan: Plan, rounds: int, delta: float) -> float | None:
        """Return `spent` as a number."""
        found = self.spent(plan, rounds, delta)
        return found if found is None or isinstance(found, int | float) else found.value

    def account(self, size: int, rounds: int) -> str:
        """Return, in words, an epsilon that only the defense's authors state; ``""`` if there is none.

        It is printed beside the results. In contrast to `spent`, nothing is computed from it.

        Args:
            size: number of values that the client sends.
            rounds: number of this client's rounds that the attacker sees, at least 1.
        """
        return ""

    def acts(self, moment: str) -> bool:
        """Return True if the defense overrides a moment or another method."""
        return getattr(type(self), moment) is not getattr(Defense, moment)

    def __or__(self, other: Defense) -> Defense:
        """Compose: this defense, then the other."""
        return Composed((*_parts(self), *_parts(other)))


@dataclass(frozen=True, repr=False)
class NoDefense(Defense):
    """Sends the update unchanged: the undefended control in every audit."""


NO_DEFENSE: Defense = NoDefense()
"""The undefended control."""


def _parts(defense: Defense) -> tuple[Defense, ...]:
    return defense.parts if isinstance(defense, Composed) else (defense,)


@dataclass(frozen=True, repr=False)
class Composed(Defense):
    """Several defenses, applied in order at each moment."""

    parts: tuple[Defense, ...] = ()

    @property
    def where(self) -> Literal["client", "server"]:  # type: ignore[override]  (a field elsewhere)
        """``"client"`` if any part acts there, else ``"server"``."""
        return "client" if any(p.where == "client" for p in self.parts) else "server"

    def init(self) -> State:
        """Return the parts' states by position."""
        return {str(i): part.init() for i, part in enumerate(self.parts)}

    def _through(self, moment: str, value: Any, state: State, generator: torch.Generator) -> tuple[Any, State]:
        after = {}
        for i, part in enumerate(self.parts):
            value, after[str(i)] = getattr(part, moment)(value, state[str(i)], generator)
        return value, after

    def model(self, value: nn.Module, state: State, generator: torch.Generator) -> tuple[nn.Module, State]:
        """Apply each part's `model`, in order."""
        return self._through("model", value, state, generator)

    def batch(self, value: Batch, state: State, generator: torch.Generator) -> tuple[Batch, State]:
        """Apply each part's `batch`, in order."""
        return self._through("batch", value, state, generator)

    def gradient(self, value: Tensors, state: State, generator: torch.Generator) -> tuple[Tensors, State]:
        """Apply each part's `gradient`, in order."""
        return self._through("gradient", value, state, generator)

    def summed(self, parts: Iterator[Tensors], state: State, generator: torch.Generator) -> Sums:
        """Return the `summed` of the part that acts on gradients, if there is exactly one; else ``None``."""
        acting = [str(i) for i, part in enumerate(self.parts) if part.acts("gradient")]
        made = self.parts[int(acting[0])].summed(parts, state[acting[0]], generator) if len(acting) == 1 else None
        return made and (made[0], {**state, acting[0]: made[1]})

    def update(self, value: Update, state: State, generator: torch.Generator) -> tuple[Update, State]:
        """Apply each part's `update`, in order."""
        return self._through("update", value, state, generator)

    def aggregate(
        self, value: Sequence[Update], state: State, generator: torch.Generator
    ) -> tuple[Sequence[Update], State]:
        """Apply each part's `aggregate`, in order."""
        return self._through("aggregate", value, state, generator)

    def disclose(self, sent: Update, plan: Plan | None = None, before: Channel | None = None) -> Channel:
        """Combine the parts' disclosures in order, those that act in `aggregate` last.

        Each part gets the update as it left that part: the disclosed changes of later parts are undone where possible.
        Returns `before` unchanged for a sum if a part would need the single updates for its disclosure (`settled`).
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
        """Return True if every part's disclosure is settled."""
        silent = [first and not any(p.acts("disclose") for p in self.parts[:i]) for i in range(len(self.parts))]
        return all(part.settled(none) for part, none in zip(self.parts, silent, strict=True))

    @property
    def counted(self) -> tuple[Defense, ...]:
        """The parts whose privacy promises hold.

        A part that acts on gradients counts only if no other part changes the model, the batch or the gradients.
        """
        inside = [part for part in self.parts if any(map(part.acts, ("model", "batch", "gradient")))]
        return tuple(part for part in self.parts if not part.acts("gradient") or inside == [part])

    def promises(self, plan: Plan, rounds: int, delta: float) -> float | None:
        """Return the smallest epsilon promised by a part that counts (`counted`); ``None`` if there is none."""
        known = [part.promises(plan, rounds, delta) for part in self.counted]
        return min((epsilon for epsilon in known if epsilon is not None), default=None)

    def acts(self, moment: str) -> bool:
        """Return True if any part overrides a moment.

        For ``"disclose"`` under secure aggregation, all parts must also be `settled` (see `disclose`).
        """
        found = any(part.acts(moment) for part in self.parts)
        return found and not (moment == "disclose" and self.acts("aggregate") and not self.settled(True))

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.parts))


class Model(Part):
    """Base class for models, which build a network for an image shape. Final classes are frozen dataclasses."""

    def build(self, image_shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
        """Build a network that maps images (N, *image_shape) in [0, 1] to logits (N, num_classes).

        A segmentation network returns logits (N, num_classes, H, W) or (N, num_classes, D, H, W).

        Args:
            image_shape: (C, H, W) or (C, D, H, W).
            num_classes: number of outputs, unless the model's own arguments set it.
            seed: seed for the untrained weights; the same seed gives the same weights.
        """
        raise NotImplementedError


class DataSource(Part):
    """Base class for data sources, which read labelled images. Final classes are frozen dataclasses."""

    def __post_init__(self) -> None:
        """Raise `InputError` for an argument out of its range; each base class checks its own arguments."""

    def load(self) -> Any:
        """Return the images as a `medpfl.data.images.LabelledImages`."""
        raise NotImplementedError

    def published(self, purpose: str) -> DataSource | None:
        """Return the published set for scoring models trained on these images; ``None`` if there is none.

        Args:
            purpose: ``"validation"`` or ``"test"``.
        """
        return None


@dataclass(frozen=True)
class Metric:
    """A pure function from (guess, truth), both (N, C, H, W), to one number per image (N,).

    Attributes:
        function: the computation; guesses are clamped to [0, 1] first, except for legacy metrics.
        unit: the unit; ``""`` for a pure number.
        leak: ``"higher"`` or ``"lower"``: the direction that means a larger leak.
        data_range: the pixels' range of values.
        legacy: True if the metric is kept only for comparison with the paper's notebooks.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    unit: str
    leak: Literal["higher", "lower"]
    data_range: float = 1.0
    legacy: bool = False

    def __post_init__(self) -> None:
        self.__dict__.update(__doc__=self.function.__doc__, __name__=self.function.__name__)

    def __call__(self, guess: Tensor, truth: Tensor) -> Tensor:
        """Return one number per image."""
        return self.function(guess if self.legacy else guess.clamp(0, 1), truth)

    def __repr__(self) -> str:
        return self.function.__name__


def metric(
    *, unit: str, leak: Literal["higher", "lower"], data_range: float = 1.0, legacy: bool = False
) -> Callable[[Callable[[Tensor, Tensor], Tensor]], Metric]:
    """Turn a function into a `Metric` (decorator)."""
    return lambda function: Metric(function, unit, leak, data_range, legacy)
