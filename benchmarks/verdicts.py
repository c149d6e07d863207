"""Frequencies of each verdict under known true rates: simulated rows, no attack.

Every undefended attack reconstructs all images. Under the defense, one of the attacks reconstructs or re-identifies an
image with a known probability: image by image, or all images of an update together (``whole``). Failed guesses point to
random images in a gallery of 200.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from medpfl.core.types import Finding
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, NO_LEAK, UNDEFENDED
from medpfl.judging.summary import summarize

__all__ = ["Case", "cases", "lines", "made_rows", "parsed", "shares"]

GALLERY = 200
DEFENSE = "Simulated()"


@dataclass(frozen=True)
class Case:
    """Settings of one simulation.

    Attributes:
        updates, batch: number of updates, and images in each.
        attacks: number of attacks; each leaking image is found by one of them.
        rate: probability that an image leaks.
        way: ``"read"`` (reconstructed) or ``"recognized"`` (re-identified).
        whole: True if an update's images leak together.
    """

    updates: int
    batch: int
    attacks: int
    rate: float
    way: str = "read"
    whole: bool = False


def cases(updates: Sequence[int] = (4, 8, 17, 24, 40, 72)) -> Iterator[Case]:
    """Yield all cases. An update with several images leaks both ways: as a whole, and image by image."""
    for batch, attacks, rate, way in itertools.product((1, 8), (1, 5), (0.0, 0.1, 0.2, 0.5), ("read", "recognized")):
        for count, whole in itertools.product(updates, (False, True) if batch > 1 else (False,)):
            yield Case(count, batch, attacks, rate, way, whole)


def made_rows(case: Case, random: np.random.Generator) -> list[Finding]:
    """Return the rows of one simulated audit: each attack without the defense, and with it."""
    images = case.updates * case.batch
    leaks = random.random(case.updates if case.whole else images) < case.rate
    leaks = np.repeat(leaks, case.batch) if case.whole else leaks
    reader = random.integers(case.attacks, size=images)
    rows = [_row(a, UNDEFENDED, i, case, True, True, i) for a in range(case.attacks) for i in range(images)]
    for a in range(case.attacks):
        named = random.integers(GALLERY, size=(images, case.batch))  # targets of the update's failed guesses
        for i in range(images):
            own = bool(leaks[i] and reader[i] == a)
            told = own or bool((named[i] == i % GALLERY).any())
            read = own and case.way == "read"
            rows.append(_row(a, DEFENSE, i, case, read, told, i % GALLERY if told else int(named[i, 0])))
    return rows


def _row(attack: int, defense: str, image: int, case: Case, read: bool, told: bool, nearest: int) -> Finding:
    score = 0.95 if read else 0.1
    return Finding(
        attack=f"Attack{attack}()", defense=defense, model="M()", data="made up", plan="Plan()",
        grants=() if defense == UNDEFENDED else ("defense",), control="", draw=0, stack=0, victim=image // case.batch,
        position=image % case.batch, image=f"i-{image}", patient=None, label=0, label_guess=None,
        scores={"ssim": score, "ssim_worst": score, "mean_image_ssim": 0.3, "nearest_ssim": 0.4}, success=read,
        identified=told, gallery=GALLERY, chance=case.batch / GALLERY, nearest_image=f"i-{nearest}", loss=0.1, steps=1,
        evaluations=1, ended="converged", flags=(), seed=0, engine="loop of 1", device="cpu", versions={}, seconds=0.0,
        date="",
    )  # fmt: skip


def shares(case: Case, repeats: int, seed: int = 0) -> dict[str, float]:
    """Return the frequency of each verdict on the defense."""
    random = np.random.default_rng([seed, *_numbers(case)])
    found = Counter(summarize(made_rows(case, random))[-1].union.verdict for _ in range(repeats))
    return {verdict: found[verdict] / repeats for verdict in (LEAKS, NO_LEAK, INCONCLUSIVE)}


def _numbers(case: Case) -> list[int]:
    ways = [int(case.way == "read"), int(case.whole)]
    return [case.updates, case.batch, case.attacks, round(100 * case.rate), *ways]


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks verdicts", description=__doc__)
    parser.add_argument("--repeats", type=int, default=1000, help="simulated audits per case (%(default)s)")
    parser.add_argument("--updates", type=int, nargs="+", default=[4, 8, 17, 24, 40, 72], help="updates per audit")
    return parser.parse_args(arguments)


def lines(given: argparse.Namespace, going: Callable[[], bool] = lambda: True) -> Iterator[str]:
    """Yield the table's rows, then the highest share of "no leak found" where 20 % or more leak."""
    yield "| images leak | per update | attacks | true rate | updates | leaks | no leak found | inconclusive |"
    yield "|---|---|---|---|---|---|---|---|"
    worst = 0.0
    for case in cases(given.updates):
        if not going():
            return
        found = shares(case, given.repeats)
        together = f"{case.way}, {'all of an update' if case.whole else 'one by one'}"
        numbers = " | ".join(f"{found[verdict]:.3f}" for verdict in (LEAKS, NO_LEAK, INCONCLUSIVE))
        yield f"| {together} | {case.batch} | {case.attacks} | {case.rate:.1f} | {case.updates} | {numbers} |"
        worst = max(worst, found[NO_LEAK] if case.rate >= 0.2 else 0.0)
    yield f"largest share of 'no leak found' where 20 % or more leak: {worst:.3f}"
