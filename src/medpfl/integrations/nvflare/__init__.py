"""Filters that record and defend updates in an NVIDIA FLARE federation (nvflare 2.9 or later, extra ``nvflare``)."""

from __future__ import annotations

from medpfl.integrations.nvflare.filters import Defense as Defense
from medpfl.integrations.nvflare.filters import Recorder as Recorder

__all__ = ["Defense", "Recorder"]
