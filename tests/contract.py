"""One way to run the checks of a role, of its registered members and of those that CONTRIBUTING shows."""

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
        checks: of a part.
        under_a_plan: checks of a part and a plan, each under all plans.
        plans: by name.
    """
    whole = [pytest.param(check, (), id=check.__name__) for check in checks]
    planned = [
        pytest.param(check, (plan,), id=f"{check.__name__}-{name}")
        for check in under_a_plan
        for name, plan in plans.items()
    ]
    return [*whole, *planned]
