"""A common way to run a role's checks, on its registered members and on the examples in CONTRIBUTING."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest

__all__ = ["every"]


def every(
    checks: Iterable[Callable[..., None]], under_a_plan: Iterable[Callable[..., None]], plans: Mapping[str, Any]
) -> list[Any]:
    """Return the parameters ``check`` and ``rest`` of a test that calls ``check(part, *rest)``.

    Args:
        checks: checks that take a part.
        under_a_plan: checks that take a part and a plan, each run under all plans.
        plans: plans by name.
    """
    whole = [pytest.param(check, (), id=check.__name__) for check in checks]
    planned = [
        pytest.param(check, (plan,), id=f"{check.__name__}-{name}")
        for check in under_a_plan
        for name, plan in plans.items()
    ]
    return [*whole, *planned]
