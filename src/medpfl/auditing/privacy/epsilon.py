"""Epsilon of differentially private defenses, over the rounds an attacker sees in an audit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from medpfl.auditing.defense_parts import at_client
from medpfl.auditing.records.recorded import behind
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.privacy.accountant import Epsilon
from medpfl.core.roles import Defense, parts_of, promising_parts
from medpfl.core.user_code.strangers import explained

__all__ = ["ROUNDS", "has_statistics", "private_parts", "spent", "uncovered_statistics"]

ROUNDS = 1
"""Rounds of one client that the attacker sees in an audit."""
_WHOSE = {"image": "an image", "patient": "a patient", "client": "the client"}


def has_statistics(network: nn.Module, plan: Plan) -> bool:
    """Return True if training changes the network's batch-norm statistics."""
    return plan.mode == "train" and any(isinstance(module, _BatchNorm) for module in network.modules())


def uncovered_statistics(defense: Defense, network: nn.Module, plan: Plan) -> bool:
    """Return True if clients also send batch-norm statistics that some promise of the defense does not cover."""
    if all(part.covers_buffers for part in private_parts(defense)):
        return False
    return has_statistics(network, plan) and "buffers" in plan.sends


def spent(defenses: Sequence[Defense], plan: Plan, delta: float, network: nn.Module) -> dict[str, str]:
    """Return epsilon for each differentially private defense, over the rounds the attacker sees.

    Args:
        defenses: the audit's defenses.
        plan: the client's plan.
        delta: delta of the reported (epsilon, delta), in (0, 1).
        network: the model.

    Returns:
        A text for each defense spec: epsilon, or the reason why none is stated, or, without the extra ``dp``, the
        package to install; and what a part says of itself without a promise (`Defense.account`).

    Raises:
        InputError: delta is out of range.
    """
    found: dict[str, str] = {}
    for defense in defenses:
        whole = at_client(behind(defense))
        texts = _accounts(whole, plan, network)
        if private := private_parts(whole):
            holding = promising_parts(whole)
            lines = [_line(part, plan, delta) if part in holding else _disturbed(part) for part in private]
            texts.insert(0, _UNCOVERED if uncovered_statistics(whole, network, plan) else "; ".join(lines))
        if texts:
            found[repr(defense)] = "; ".join(texts)
    return found


def _accounts(whole: Defense, plan: Plan, network: nn.Module) -> list[str]:
    """Return the parts' own accounts, for all values that a client sends."""
    sent = [*network.parameters(), *(network.buffers() if "buffers" in plan.sends else ())]
    size = sum(t.numel() for t in sent)
    told = []
    for part in parts_of(whole):
        with explained("its account() failed"):
            told.append(part.account(size, ROUNDS))
    return [text for text in told if text]


_UNCOVERED = "epsilon is not stated: the noise would not cover the batch-norm statistics that clients send"


def _disturbed(part: Defense) -> str:
    return f"epsilon for {_WHOSE[part.unit or '']} is not stated: another part changes the input of its steps"


def private_parts(defense: Defense) -> tuple[Defense, ...]:
    """Return a defense's differentially private parts."""
    return tuple(part for part in parts_of(defense) if part.unit is not None)


def _line(part: Defense, plan: Plan, delta: float) -> str:
    of = _WHOSE[part.unit or ""]
    try:
        with explained("it failed"):
            said = _stated(part.spent(plan, ROUNDS, delta), delta)
    except InputError as error:
        return f"epsilon for {of} could not be computed ({error})"
    return f"{said}, for {of}, over {ROUNDS} round with {plan.sampling} sampling"


def _stated(found: Any, delta: float) -> str:
    if isinstance(found, Epsilon):
        return str(found)
    if isinstance(found, bool) or not isinstance(found, int | float) or not found >= 0:
        raise InputError(f"it reports {found!r} as spent: epsilon must be a number, at least 0")
    return f"epsilon {found:.3g} (by the defense's own account) at delta {delta:g}"
