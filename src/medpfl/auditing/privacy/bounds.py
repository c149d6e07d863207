"""Success bounds under differential privacy for an audit's images, beside the measured success rates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medpfl.auditing.defense_parts import at_client
from medpfl.auditing.privacy.epsilon import ROUNDS, private_parts, uncovered_statistics
from medpfl.auditing.records.recorded import behind
from medpfl.auditing.scenario import Scenario
from medpfl.auditing.scoring import Scorer
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.privacy.tradeoff import Mechanism, tightest
from medpfl.core.roles import Defense, promising_parts
from medpfl.core.user_code.strangers import explained
from medpfl.judging.types import Bound, Cell, Mark, StatedMechanism
from medpfl.metrics.no_prior import no_prior_guess
from medpfl.metrics.pixel import SUCCESS, ssim
from medpfl.runs.environment import generator_of

__all__ = ["bounded", "bounds_of", "check_bounds"]

_KAPPAS = (0.0, *np.logspace(-4, 0, 81).round(8).tolist())
_GUESSES = 200
"""Minimum number of guesses for the no-prior reference, over all images; as many are made together."""


def bounds_of(scenario: Scenario, scorer: Scorer) -> dict[str, dict[str, Any]]:
    """Return the success bound for each differentially private defense, over the rounds the attacker sees.

    Returns:
        An entry for each defense spec with these keys: ``rounds``; ``mechanisms``, each with its privacy ``unit``
        (``"image"``, ``"patient"`` or ``"client"``), ``noise``, ``rate``, ``steps`` and ``profile``; ``curve``, pairs
        (kappa, smallest bound among the mechanisms); ``no_prior``, the no-prior reference's success rates; ``gap``,
        the reason why there is no curve, else ``None``.
    """
    found = {}
    for defense in scenario.defenses:
        whole = at_client(behind(defense))
        if private_parts(whole):
            found[repr(defense)] = _entry(whole, scenario, scorer)
    return found


def _entry(whole: Defense, scenario: Scenario, scorer: Scorer) -> dict[str, Any]:
    known = promising_parts(whole)
    entry: dict[str, Any] = {"rounds": ROUNDS, "gap": None, "curve": []}
    if uncovered_statistics(whole, scenario.network(0), scenario.plan):
        return {**entry, "gap": "the noise does not cover the batch-norm statistics that clients send"}
    if not known:
        return {**entry, "gap": "another part changes the input of its steps"}
    kept, gaps = [], []
    for part in known:
        try:
            seen = _seen(part, scenario.plan)
            kept.append((seen, {"unit": part.unit, **_numbers(seen)}))
        except InputError as error:
            gaps.append(str(error))
    if not kept:
        return {**entry, "gap": gaps[0]}
    mechanisms = [seen for seen, _ in kept]
    return {
        **entry,
        "mechanisms": [numbers for _, numbers in kept],
        "curve": [[kappa, tightest(mechanisms, kappa)] for kappa in _KAPPAS],
        "no_prior": _no_prior(scenario, scorer, min(mechanisms, key=lambda one: one.mu)),
    }


def _seen(part: Defense, plan: Plan) -> Mechanism:
    with explained("its mechanism() failed"):
        seen = part.mechanism(plan, ROUNDS)
    if not isinstance(seen, Mechanism):
        raise InputError("it names no Gaussian mechanism, and bounds exist only for those")
    return seen


def _numbers(seen: Mechanism) -> dict[str, Any]:
    return {"noise": seen.noise, "rate": seen.rate, "steps": seen.steps, "profile": seen.profile}


def _no_prior(scenario: Scenario, scorer: Scorer, seen: Mechanism) -> dict[str, float | None]:
    """Return success rates for guesses without a prior, as if each image took part in every step."""
    own, numbers = scenario.victims.flatten(), (seen.noise, seen.rate, seen.steps)
    generator, hits, told = generator_of(scenario.run.seed, "no prior", *numbers), [], []
    for _ in range(-(-_GUESSES // len(own))):
        for some in own.split(_GUESSES):
            truth = scenario.data.images[some]
            guess = no_prior_guess(truth, 1 / seen.mu, generator).clamp(0, 1)
            hits += (ssim(guess, truth) >= SUCCESS).tolist()
            told += [one for one in scorer.identified(guess, some)[0] if one is not None]
    return {"asr": sum(hits) / len(hits), "identified": sum(told) / len(told) if told else None}


def check_bounds(out: Path, bounds: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise `InputError` if a run directory's bounds (see `bounds_of`) come from another version."""
    if any(entry["gap"] is None and "mechanisms" not in entry for entry in bounds.values()):
        raise InputError(
            f"'{out}' was made by another version of MedPFL, whose success bounds this one cannot read: run the "
            "command that made it again, which keeps its rows"
        )


def bounded(summary: Sequence[Cell], bounds: Mapping[str, Mapping[str, Any]]) -> list[Cell]:
    """Add the success bound to every cell whose defense is differentially private.

    The bound starts from kappa, the success rate of the best guess made without the update. A better guess may
    exist, so kappa is an assumption.

    Args:
        summary: an audit's cells.
        bounds: result of `bounds_of`.
    """
    return [
        replace(cell, bound=_bound(cell, bounds[cell.defense])) if cell.defense in bounds else cell for cell in summary
    ]


def _bound(cell: Cell, entry: Mapping[str, Any]) -> Bound:
    bound = Bound(rounds=entry["rounds"], gap=entry["gap"], curve=entry["curve"])
    if entry["gap"] is not None:
        return bound
    by_guess = {
        "mean_image": cell.asr_mean_image.value,
        "nearest": cell.asr_nearest.value,
        "random_update": cell.asr_random_update.value,
    }
    ends = [cell.asr_mean_image.high, cell.asr_nearest.high]
    seen = [
        Mechanism(one["noise"], one["rate"], one["steps"], tuple(map(tuple, one["profile"])))
        for one in entry["mechanisms"]
    ]
    return replace(
        bound,
        mechanisms=tuple(
            StatedMechanism(unit=one["unit"], noise=one["noise"], rate=one["rate"], steps=one["steps"])
            for one in entry["mechanisms"]
        ),
        no_prior=entry["no_prior"],
        asr=_at(seen, by_guess.values(), ends),
        identified=_at(seen, [cell.chance, cell.identified_random_update.value], [cell.chance]),
        guesses={**by_guess, "chance": cell.chance},
    )


def _at(seen: Sequence[Mechanism], rates: Iterable[float | None], ends: Iterable[float | None]) -> Mark:
    """Return the largest rate, the largest upper end of their intervals, and the bound at both."""
    kappa = max((rate for rate in rates if rate is not None), default=None)
    if kappa is None:
        return Mark()
    high = max([kappa, *(end for end in ends if end is not None)])
    return Mark(kappa=kappa, kappa_high=high, bound=tightest(seen, kappa), bound_high=tightest(seen, high))
