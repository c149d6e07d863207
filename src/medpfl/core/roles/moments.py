"""A defense by itself: its moments, its disclosure and its promises."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from medpfl.core.errors import InputError
from medpfl.core.spec import Part, lacking

if TYPE_CHECKING:
    import torch
    from torch import nn

    from medpfl.core.channels.exchange import Exchange, MaskedVector
    from medpfl.core.plan import Plan
    from medpfl.core.privacy.accountant import Epsilon
    from medpfl.core.privacy.tradeoff import Mechanism
    from medpfl.core.types import Batch, Channel, Tensors, Update

    Sums = tuple[Tensors, dict[str, Any]] | None

__all__ = ["UNITS", "Aggregation", "Moments", "State", "Unit"]

Unit = Literal["image", "patient", "client"]
"""The privacy unit that differential privacy protects: an image, all images of a patient, or all data of a client."""
UNITS: tuple[Unit, ...] = get_args(Unit)

State = dict[str, Any]
"""A defense's state between rounds: tensors, numbers, and dictionaries of them."""


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


class Moments(Part):
    """A defense without composition, which `medpfl.core.roles.Defense` adds.

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
        raise lacking(self, "read(self, masked, like)")

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

    def promises(self, plan: Plan, rounds: int, delta: float) -> dict[Unit, float]:
        """Return `spent` as a number, by privacy unit; empty without a promise."""
        found = self.spent(plan, rounds, delta)
        if found is None or self.unit is None:
            return {}
        return {self.unit: found if isinstance(found, int | float) else found.value}

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
        return getattr(type(self), moment) is not getattr(Moments, moment)
