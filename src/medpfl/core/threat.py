"""The threat model: what the attacker knows, printed in every report. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from medpfl.core.errors import InputError, nearest
from medpfl.core.spec import Part

__all__ = ["GRANTS", "HONEST", "ThreatModel"]

GRANTS = {
    "labels": "the attacker knows the labels of the private images",
    "order": "the attacker knows the order in which the client used its images",
    "masks": "the attacker knows the client's dropout masks",
    "defense": "the attacker knows the defense and its settings; by default, each defense is tested without and with "
    "this knowledge",
    "auxiliary": "the attacker has other images of the same kind",
    "gray": "the attacker knows that the images are gray, so that their channels are equal: a public fact about the "
    "modality, assumed where it is true unless it is withheld",
    "active": "the server may choose the model that it sends to the client",
}


@dataclass(frozen=True, repr=False)
class ThreatModel(Part):
    """An honest-but-curious server with extra knowledge.

    It always knows the model, its weights, the plan, and everything that clients send. Any other knowledge is a grant:
    an assumption that favors the attack.

    >>> ThreatModel().granting("labels")
    ThreatModel(grants=('labels',))

    Attributes:
        grants: names of grants, see `GRANTS`.
        naive: True tests a defense that discloses something only with naive attacks. By default, adaptive attacks are
            run too. A failed naive attack never gives the verdict "no leak found".
        gray: True grants ``"gray"`` where all images are gray and have several channels (see `knowing`).

    Raises:
        InputError: a grant does not exist, or `naive` is combined with the grant ``"defense"``.
    """

    grants: tuple[str, ...] = ()
    naive: bool = False
    gray: bool = True

    def __post_init__(self) -> None:
        for grant in self.grants:
            if grant not in GRANTS:
                raise InputError(f"there is no grant '{grant}'; {nearest(grant, GRANTS)}")
        if self.naive and "defense" in self.grants:
            raise InputError("naive withholds what the grant 'defense' gives: leave out one of the two")
        object.__setattr__(self, "grants", tuple(g for g in GRANTS if g in self.grants))

    def granting(self, *grants: str) -> ThreatModel:
        """Return the same threat model with more grants."""
        return replace(self, grants=(*self.grants, *grants))

    def withholding(self, *grants: str) -> ThreatModel:
        """Return the same threat model with fewer grants."""
        return replace(self, grants=tuple(g for g in self.grants if g not in grants))

    def knowing(self, gray: bool) -> ThreatModel:
        """Return the same threat model with what is publicly known of the images.

        Args:
            gray: True if the images have several channels, and these are equal in all of them.

        Raises:
            InputError: the grant ``"gray"`` is false.
        """
        if "gray" in self and not gray:
            raise InputError(
                "the grant 'gray' is for images with several equal channels, but these are not: leave it out"
            )
        return self.granting("gray") if gray and self.gray else self

    def __contains__(self, grant: str) -> bool:
        return grant in self.grants

    @property
    def knowledge(self) -> tuple[bool, ...]:
        """The attacks' knowledge of the defense's disclosure: False (naive), True (adaptive), or both in this order."""
        return (False,) if self.naive else (True,) if "defense" in self else (False, True)


HONEST = ThreatModel()
"""An honest-but-curious server without grants."""
