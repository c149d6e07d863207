"""What of a defense acts before the server has the update, and what there is to know of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_

from medpfl.auditing.recorded import behind
from medpfl.core.roles import NO_DEFENSE, Composed, Defense

__all__ = ["at_client", "discloses", "parts_of", "server_only", "server_side", "untold"]


def parts_of(defense: Defense) -> tuple[Defense, ...]:
    """The parts of a composed defense; else itself."""
    return defense.parts if isinstance(defense, Composed) else (defense,)


def at_client(defense: Defense) -> Defense:
    """The part of a defense that acts before the server has the update; the rest comes too late."""
    kept = [part for part in parts_of(defense) if part.where == "client"]
    return reduce(or_, kept) if kept else NO_DEFENSE


def discloses(defense: Defense) -> bool:
    """Whether an adversary that is told of a defense learns something: its channel is not the identity."""
    return at_client(behind(defense)).acts("disclose")


def untold(defense: Defense) -> bool:
    """Whether there is something to know that nobody is told: what is done by each update, unseen or hidden in a sum.

    An attack on it is one without knowledge, and its failure says nothing.
    """
    acting = at_client(behind(defense))
    return not acting.acts("disclose") and not acting.settled(True)


def server_side(defenses: Sequence[Defense]) -> list[str]:
    """Specs of the defenses of which a part acts only at the server."""
    return [repr(d) for d in defenses if any(part.where == "server" for part in parts_of(d))]


def server_only(defenses: Sequence[Defense]) -> list[str]:
    """Specs of the defenses of which no part acts at the client."""
    return [repr(d) for d in defenses if d.where == "server"]
