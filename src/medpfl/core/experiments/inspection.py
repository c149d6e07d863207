"""The typed question about a model: what ``medpfl check-model`` is asked. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medpfl.core.experiments import limits
from medpfl.core.experiments.groups import Reading, Run
from medpfl.core.experiments.options import Options, again, option
from medpfl.core.plan import Plan

__all__ = ["Inspection"]


@dataclass(frozen=True, kw_only=True)
class Inspection(Options):
    """A model, and the images that it is for, as strings and numbers."""

    model: str = option("", "spec from 'medpfl list models', file.py:name or package.module:name")
    image_shape: str | None = option(None, "1,64,64 or, of volumes, 1,16,64,64")
    size: int = again(Reading, "size", text="edge of the images in pixels, in place of the shape")
    channels: int = option(1, "of the images, in place of the shape", least=1, most=limits.CLASSES)
    classes: int = option(2, "of the data", least=1, most=limits.CLASSES)
    weights: str | None = option(None, "weights file, as for an audit")
    mode: Literal["train", "eval"] = again(Plan, "mode")
    seed: int = again(Run, "seed", text="of untrained weights")
    json: bool = option(False, "print all of it as JSON")
