"""Defenses and their composition: several defenses, applied in order, are a defense."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal

from medpfl.core.errors import InputError
from medpfl.core.roles.moments import UNITS, Aggregation, Moments, State, Unit

if TYPE_CHECKING:
    import torch
    from torch import nn

    from medpfl.core.channels.exchange import Exchange, MaskedVector
    from medpfl.core.plan import Plan
    from medpfl.core.privacy.accountant import Epsilon
    from medpfl.core.privacy.tradeoff import Mechanism
    from medpfl.core.roles.moments import Sums
    from medpfl.core.types import Batch, Channel, Tensors, Update

__all__ = ["NO_DEFENSE", "Composed", "Defense", "NoDefense", "parts_of", "promising_parts"]


class Defense(Moments):
    """Base class for defenses, which change training or updates. Defenses compose with ``|``.

    A defense overrides one or more of five moments: `model`, `batch`, `gradient`, `update` and `aggregate`. Each is the
    identity by default. Moments are pure: they take a value, the defense's state and a generator, and return the new
    value and the new state.
    """

    def __or__(self, other: Defense) -> Defense:
        """Compose: this defense, then the other."""
        return Composed((*parts_of(self), *parts_of(other)))


@dataclass(frozen=True, repr=False)
class NoDefense(Defense):
    """Sends the update unchanged: the undefended control in every audit."""


NO_DEFENSE: Defense = NoDefense()
"""The undefended control."""


def parts_of(defense: Defense) -> tuple[Defense, ...]:
    """Return a composed defense's parts; any other defense is its own only part."""
    return defense.parts if isinstance(defense, Composed) else (defense,)


def promising_parts(defense: Defense) -> tuple[Defense, ...]:
    """Return the differentially private parts whose promises hold.

    A part that acts on gradients keeps its promise only if no other part changes the model, the batch or the gradients.
    """
    parts = parts_of(defense)
    inside = [part for part in parts if any(map(part.acts, ("model", "batch", "gradient")))]
    return tuple(p for p in parts if p.unit is not None and (not p.acts("gradient") or inside == [p]))


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
    def aggregation(self) -> Aggregation:  # type: ignore[override]  (a field elsewhere)
        """The protocol of the part that acts in `aggregate`."""
        return self._summing().aggregation

    def exchange(self, updates: Sequence[Update], generator: torch.Generator) -> Exchange:
        """Simulate a round of the part that acts in `aggregate`, on updates that all other parts have changed."""
        return self._summing().exchange(updates, generator)

    def staying(self, clients: int) -> int:
        """Return how many of a round's clients are in the mean, by the part that acts in `aggregate`."""
        return self._summing().staying(clients)

    def read(self, masked: MaskedVector, like: Update) -> Update:
        """Interpret a masked message as the part that acts in `aggregate` does."""
        return self._summing().read(masked, like)

    def _summing(self) -> Defense:
        found = [part for part in self.parts if part.acts("aggregate")]
        if len(found) > 1:
            raise InputError(f"{self!r}: {len(found)} of its parts sum over clients; only one may")
        return found[0] if found else NO_DEFENSE

    @property
    def unit(self) -> Unit | None:  # type: ignore[override]  (a field elsewhere)
        """The privacy unit of all promises that hold; ``None`` if none does.

        Raises:
            InputError: they protect several units; `promises` states each.
        """
        found: list[Unit | None] = [*dict.fromkeys(part.unit for part in promising_parts(self))]
        if len(found) > 1:
            raise InputError(
                f"{self!r} promises something for several units ({', '.join(map(str, found))}): ask a part"
            )
        return found[0] if found else None

    @property
    def covers_buffers(self) -> bool:  # type: ignore[override]  (a field elsewhere)
        """True if every promise that holds also covers batch-norm statistics that are sent."""
        found = [part.covers_buffers for part in promising_parts(self)]
        return bool(found) and all(found)

    def mechanism(self, plan: Plan, rounds: int) -> Mechanism | None:
        """Return the Gaussian mechanism of the part whose promise holds; ``None`` if there is none.

        Raises:
            InputError: several parts have one. Each holds by itself, so ask a part.
        """
        known = [one for part in promising_parts(self) if (one := part.mechanism(plan, rounds)) is not None]
        if len(known) > 1:
            raise InputError(f"{self!r} has {len(known)} mechanisms, and each holds by itself: ask a part")
        return known[0] if known else None

    def spent(self, plan: Plan, rounds: int, delta: float) -> Epsilon | float | None:
        """Return the smallest epsilon of the promises that hold; ``None`` if there is none.

        Raises:
            InputError: as for a part; or the promises protect several units (`unit`).
        """
        _ = self.unit
        known = [one for part in promising_parts(self) if (one := part.spent(plan, rounds, delta)) is not None]
        return min(known, key=lambda one: one if isinstance(one, int | float) else one.value, default=None)

    def account(self, size: int, rounds: int) -> str:
        """Return what the parts' authors state, in order."""
        return "; ".join(text for part in self.parts if (text := part.account(size, rounds)))

    def promises(self, plan: Plan, rounds: int, delta: float) -> dict[Unit, float]:
        """Return, for each privacy unit, the smallest epsilon that a part promises (`promising_parts`)."""
        known = [part.promises(plan, rounds, delta) for part in promising_parts(self)]
        found: dict[Unit, float] = {}
        for unit in UNITS:
            if own := [one[unit] for one in known if unit in one]:
                found[unit] = min(own)
        return found

    def acts(self, moment: str) -> bool:
        """Return True if any part overrides a moment.

        For ``"disclose"`` under secure aggregation, all parts must also be `settled` (see `disclose`).
        """
        found = any(part.acts(moment) for part in self.parts)
        return found and not (moment == "disclose" and self.acts("aggregate") and not self.settled(True))

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.parts))
