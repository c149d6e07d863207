"""Where a defense's parts act, and whether they disclose anything."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_

from medpfl.auditing.records.recorded import behind
from medpfl.core.roles import NO_DEFENSE, Defense, parts_of

__all__ = ["at_client", "discloses", "server_only", "server_side", "untold"]


def at_client(defense: Defense) -> Defense:
    """Return the defense without its server-side parts, which act after the server has the update."""
    kept = [part for part in parts_of(defense) if part.where == "client"]
    return reduce(or_, kept) if kept else NO_DEFENSE


def discloses(defense: Defense) -> bool:
    """Return True if the defense discloses anything: its channel is not the identity."""
    return at_client(behind(defense)).acts("disclose")


def untold(defense: Defense) -> bool:
    """Return True if the defense changes updates in ways no attack can be told.

    An example is a data-dependent step whose result is hidden in a sum. Every attack on such a defense is naive, and
    its failure says nothing.
    """
    acting = at_client(behind(defense))
    return not acting.acts("disclose") and not acting.settled(True)


def server_side(defenses: Sequence[Defense]) -> list[str]:
    """Return the specs of all defenses with a server-side part."""
    return [repr(d) for d in defenses if any(part.where == "server" for part in parts_of(d))]


def server_only(defenses: Sequence[Defense]) -> list[str]:
    """Return the specs of all defenses that act only at the server."""
    return [repr(d) for d in defenses if d.where == "server"]
