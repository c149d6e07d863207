"""The undefended control."""

from __future__ import annotations

from dataclasses import dataclass

from medpfl.core.roles import Defense

__all__ = ["NoDefense"]


@dataclass(frozen=True, repr=False)
class NoDefense(Defense):
    """The update leaves the client as it is: the control beside every defense."""
