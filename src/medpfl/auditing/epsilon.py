"""What differentially private defenses have spent when the adversary has seen what an audit shows it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from medpfl.auditing.defense_parts import at_client, parts_of
from medpfl.auditing.recorded import behind
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.privacy.accountant import Epsilon
from medpfl.core.roles import Defense
from medpfl.core.user_code.strangers import explained

__all__ = ["ROUNDS", "has_statistics", "private_parts", "sends_statistics", "spent"]

ROUNDS = 1
"""Of a client, that the adversary sees in an audit."""
_WHOSE = {"image": "an image", "patient": "a patient", "client": "the client"}


def has_statistics(network: nn.Module, plan: Plan) -> bool:
    """Whether training changes batch-norm statistics of a network."""
    return plan.mode == "train" and any(isinstance(module, _BatchNorm) for module in network.modules())


def sends_statistics(network: nn.Module, plan: Plan) -> bool:
    """Whether batch-norm statistics of the images travel beside the update, which no noise on it covers."""
    return has_statistics(network, plan) and "buffers" in plan.sends


def spent(defenses: Sequence[Defense], plan: Plan, delta: float, network: nn.Module) -> dict[str, str]:
    """Return epsilon, for each defense that promises one, over the rounds that the adversary sees.

    Args:
        defenses: of the audit.
        plan: of the client.
        delta: in (0, 1).
        network: the model.

    Returns:
        By spec, a sentence: epsilon; why none may be stated; without the extra ``dp``, what to install.

    Raises:
        InputError: delta out of its range.
    """
    found: dict[str, str] = {}
    for defense in defenses:
        whole = at_client(behind(defense))
        if private := private_parts(whole):
            lines = [_line(part, plan, delta) for part in private]
            found[repr(defense)] = _unpromised(whole, plan, delta, network) or "; ".join(lines)
    return found


def _unpromised(whole: Defense, plan: Plan, delta: float, network: nn.Module) -> str:
    """Why the accountants' number would be no promise; ``""`` if it is one."""
    if sends_statistics(network, plan):
        return "an epsilon that is not stated: it would not cover the batch-norm statistics that are sent"
    with suppress(InputError), explained("it cannot say what it promises"):  # which the line itself explains
        if whole.promises(plan, ROUNDS, delta) is None:
            return "an epsilon that is not stated: another part changes what enters its steps"
    return ""


def private_parts(defense: Defense) -> tuple[Defense, ...]:
    """Return the parts of a defense that promise differential privacy."""
    return tuple(part for part in parts_of(defense) if part.unit is not None)


def _line(part: Defense, plan: Plan, delta: float) -> str:
    of = _WHOSE[part.unit or ""]
    try:
        with explained("it failed"):
            said = _stated(part.spent(plan, ROUNDS, delta), delta)
    except InputError as error:
        return f"an epsilon, of {of}, that is not computed ({error})"
    return f"{said}, of {of}, over {ROUNDS} round under {plan.sampling} sampling"


def _stated(found: Any, delta: float) -> str:
    if isinstance(found, Epsilon):
        return str(found)
    if isinstance(found, bool) or not isinstance(found, int | float) or not found >= 0:
        raise InputError(f"it says that {found!r} was spent: epsilon is a number, at least 0")
    return f"epsilon {found:.3g} (by the defense's own account) at delta {delta:g}"
