"""The options of ``medpfl check-model`` as a typed experiment. Does not import torch."""

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
    """A model and the shape of its images as strings and numbers."""

    model: str = option("", "model: spec from 'medpfl list models', file.py:name or package.module:name")
    image_shape: str | None = option(None, "image shape: 1,64,64 or, for volumes, 1,16,64,64")
    size: int = again(Reading, "size", text="side length of the images in pixels, if --image-shape is not given")
    channels: int = option(1, "channels of the images, if --image-shape is not given", least=1, most=limits.CLASSES)
    classes: int = option(2, "number of classes", least=1, most=limits.CLASSES)
    weights: str | None = option(None, "weights file: safetensors, or a state dict from torch.save")
    mode: Literal["train", "eval"] = again(Plan, "mode")
    seed: int = again(Run, "seed", text="seed for the weights of an untrained model")
    page: str | None = option(None, "file for a page in HTML, which shows no image")
    json: bool = option(False, "print the result as JSON")
