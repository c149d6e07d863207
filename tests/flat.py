"""Options side by side, as on the command line, for tests that share or vary them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from inspect import signature
from typing import Any, TypeVar

from medpfl import ThreatModel

__all__ = ["flat"]

T = TypeVar("T")


def flat(door: Callable[..., T], *args: Any, **options: Any) -> T:
    """Call `medpfl.audit` or another public function with its groups' options given side by side."""
    if options.pop("naive", False):
        options["threat"] = replace(options.get("threat") or ThreatModel(), naive=True)
    for name, parameter in signature(door).parameters.items():
        if name in ("victims", "reading", "criteria", "cohort", "schedule", "scale", "run"):
            start = options.get(name, parameter.default)
            own = {one.name: options.pop(one.name) for one in fields(start) if one.name in options}
            options[name] = replace(start, **own)
    return door(*args, **options)
