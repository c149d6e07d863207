"""What the adversary has, said explicitly and printed in every report. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from medpfl.core.errors import InputError, nearest
from medpfl.core.spec import Part

__all__ = ["GRANTS", "ThreatModel"]

GRANTS = {
    "labels": "the adversary is told the labels of the private images",
    "order": "the adversary is told in which order the client used its images",
    "masks": "the adversary is told the client's dropout masks",
    "defense": "the adversary knows what the defense discloses of itself; by default it is attacked without and with",
    "auxiliary": "the adversary has other images of the same kind",
    "active": "the server may choose the model that it sends to the client",
}


@dataclass(frozen=True, repr=False)
class ThreatModel(Part):
    """An honest-but-curious server, and what it is granted beyond the wire.

    It always knows the model, its weights, the plan, and what is on the wire. Whatever else it has is a
    grant, and a favourable assumption for the attack.

    >>> ThreatModel().granting("labels")
    ThreatModel(grants=('labels',))

    Attributes:
        grants: names, see `GRANTS`.
        naive: a defense that discloses something of itself is attacked by attacks that are not told of it only; by
            default, by those that are told too. A naive attack that fails is never "no leak found".

    Raises:
        InputError: a grant that does not exist, or `naive` with the grant ``"defense"``.
    """

    grants: tuple[str, ...] = ()
    naive: bool = False

    def __post_init__(self) -> None:
        for grant in self.grants:
            if grant not in GRANTS:
                raise InputError(f"there is no grant '{grant}'; {nearest(grant, GRANTS)}")
        if self.naive and "defense" in self.grants:
            raise InputError("naive withholds what the grant 'defense' gives: leave out one of them")
        object.__setattr__(self, "grants", tuple(g for g in GRANTS if g in self.grants))

    def granting(self, *grants: str) -> ThreatModel:
        """The same adversary with more."""
        return replace(self, grants=(*self.grants, *grants))

    def withholding(self, *grants: str) -> ThreatModel:
        """The same adversary with less."""
        return replace(self, grants=tuple(g for g in self.grants if g not in grants))

    def __contains__(self, grant: str) -> bool:
        return grant in self.grants

    @property
    def knowledge(self) -> tuple[bool, ...]:
        """Whether attacks are told what a defense discloses: in turn not told and told, or one of both."""
        return (False,) if self.naive else (True,) if "defense" in self else (False, True)
