"""Records and defenses for a Flower federation (flwr 1.42 or later, extra ``flower``)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medpfl.core.records.masked import Masked as Masked
    from medpfl.integrations.flower.grid import RecordingGrid as RecordingGrid
    from medpfl.integrations.flower.mods import defend as defend
    from medpfl.integrations.flower.mods import record as record
    from medpfl.integrations.flower.site import install as install

_PLACES = {"RecordingGrid": "grid", "defend": "mods", "install": "site", "record": "mods"}

__all__ = ["Masked", "RecordingGrid", "defend", "install", "record"]


def __getattr__(name: str) -> Any:
    """Import a name at its first use: a client process must answer its SuperNode before torch is loaded."""
    if name == "Masked":
        from medpfl.core.records.masked import Masked

        return Masked
    if name not in _PLACES:
        raise AttributeError(f"module 'medpfl.integrations.flower' has no attribute '{name}'")
    return getattr(import_module(f"medpfl.integrations.flower.{_PLACES[name]}"), name)
