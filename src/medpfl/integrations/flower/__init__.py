"""Records and defenses for a Flower federation (flwr 1.42 or later, extra ``flower``)."""

from __future__ import annotations

from medpfl.integrations.flower.grid import RecordingGrid as RecordingGrid
from medpfl.integrations.flower.masked import Masked as Masked
from medpfl.integrations.flower.mods import defend as defend
from medpfl.integrations.flower.mods import record as record
from medpfl.integrations.flower.site import install as install

__all__ = ["Masked", "RecordingGrid", "defend", "install", "record"]
