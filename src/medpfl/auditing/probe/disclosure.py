"""Comparison between what a defense does and what it discloses.

An adaptive attack that gets a wrong disclosure fails for that reason, which says nothing about the defense.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import sqrt
from typing import Any

import torch
from torch import nn

from medpfl.auditing.defense_parts import at_client
from medpfl.auditing.probe.plays import STAND_IN, PartPlayer, Play, Stage, Unusable, apart, disclosed, draw_seed
from medpfl.auditing.probe.residuals import HIDDEN, Residual, hidden, is_identity, noise_told, repeated, same
from medpfl.auditing.records.recorded import behind
from medpfl.core.plan import Plan
from medpfl.core.roles import Defense, parts_of
from medpfl.core.types import Batch, Channel, Tensors

__all__ = ["Disclosure", "probe"]

_SCALES = (2.0, 0.5)

_DRIFT = 4.0
"""Extra factor on the noise thresholds if noise enters several local steps: each step's gradient depends on the noise
in earlier steps, which no precision can describe."""


_TOGETHER = 1e-2
"""Share of the energy that several parts' disclosures together may leave unexplained: 10 % of the norm. Each is exact
by itself, but `Channel.then` approximates how noise passes the next part, which leaves up to 0.002."""


@dataclass(frozen=True)
class Disclosure:
    """The probe's findings about a defense.

    Attributes:
        changes: True if the sent update differs from the undefended one in any probed round.
        silent: True if the defense, or a part of it, changes the update without disclosing it.
        deterministic: True if the same images, order and masks give the same update under every seed of the defense.
        linear: True if the sent update is an affine function of the undefended one while the defense's seed is fixed.
        zeros: share of coordinates sent as zero whose undefended value is not zero, and which are disclosed neither as
            unknown nor as bounded.
        unexplained: share of the sent update's energy (sum of squares) left unexplained by disclosed noise and bounds.
        problems: contradictions between disclosure and findings, in words; empty if the disclosure holds.
    """

    changes: bool
    silent: bool
    deterministic: bool
    linear: bool
    zeros: float = 0.0
    unexplained: float = 0.0
    problems: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """True if an adaptive attack learns everything there is to know.

        >>> Disclosure(changes=True, silent=True, deterministic=True, linear=True).holds
        False
        """
        return not self.silent and not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form.

        >>> found = Disclosure(changes=True, silent=False, deterministic=True, linear=True, problems=("a", "b"))
        >>> Disclosure.from_dict(found.to_dict()) == found
        True
        """
        return {**asdict(self), "problems": list(self.problems)}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Disclosure:
        """Build the findings from their JSON form."""
        return cls(**{**row, "problems": tuple(row["problems"])})


def probe(
    defense: Defense, model: nn.Module, plan: Plan, batches: Sequence[Batch], generator: torch.Generator
) -> Disclosure:
    """Run a defense, and compare what it sends with what it discloses.

    The probe repeats one round: with another seed of the defense, with other images, and with the update times 2 and
    times 1/2. Batch order and dropout masks stay the same. For a composed defense, it probes each part by itself, and
    then all parts together with another seed and with other images. A part that sums over clients is probed with the
    fewest clients its settings allow.

    The cost is at most 10 local updates for a part that acts inside the local steps, 6 for one that changes layers or
    images, and 2 for all other parts together. All parts together cost as much as the most expensive part.

    The probe misses effects in later rounds only (error feedback), with other images, or at other scales.

    Args:
        defense: the defense, without its parts that act only at the server; for a recorded update, the claimed defense.
        model: the model as the server sends it, with its weights, before the defense's `model` moment.
        plan: the clients' plan.
        batches: one or more batches with the plan's number of images; the first two are used.
        generator: CPU generator, the only source of randomness.

    Raises:
        InputError: the defense does not run on this model under this plan.
    """
    acting = at_client(behind(defense))
    parts = parts_of(acting)
    stage = Stage(model, plan, batches, draw_seed(generator))
    players = [PartPlayer(part, stage, generator) for part in parts]
    found = [_found(player, draw_seed(generator)) for player in players]
    # Disclosures about single updates may not hold for their sum; then `Composed.disclose` discloses nothing.
    untold = len(parts) > 1 and not acting.acts("disclose")
    problems = [text for one in found for text in one.problems]
    if len(parts) > 1:
        named = zip(parts, found, strict=True)
        problems = [f"{part!r}: {text}" for part, one in named for text in one.problems]
        problems += _chained(players, draw_seed(generator))
        if not problems and not untold and not any(one.silent for one in found):
            problems = _together(PartPlayer(acting, stage, generator), players, draw_seed(generator))
    changes = any(one.changes for one in found)
    return Disclosure(
        changes,
        silent=changes and (untold or any(one.silent for one in found)),
        deterministic=all(one.deterministic for one in found),
        linear=all(one.linear for one in found),
        zeros=max(one.zeros for one in found),
        unexplained=max(one.unexplained for one in found),
        problems=tuple(problems),
    )


def _found(player: PartPlayer, seed: int) -> Disclosure:
    """Return the findings about one part."""
    try:
        plays = _plays(player, seed)
    except Unusable as error:
        # Without a channel it is unknown whether the defense changes anything; assume that it does.
        return Disclosure(True, False, False, False, problems=(str(error),))
    first, again, others, *scaled = plays
    changes = not all(same(each.sent, each.raw) for each in plays)
    silent = changes and all(map(is_identity, plays))
    residuals = [Residual.of(each, _DRIFT if player.drifts else 1.0) for each in plays]
    found = Disclosure(
        changes,
        silent,
        deterministic=same(first.sent, again.sent),
        linear=_linear(player, seed, (first, others, *scaled)),
        zeros=max(each.zeros for each in residuals[:3]),
        unexplained=max(each.unexplained for each in residuals),
    )
    if silent and not player.part.acts("disclose"):
        return found  # without a disclosure, nothing can be wrong
    return replace(found, problems=tuple(_problems(found, plays, residuals, player)))


def _plays(player: PartPlayer, seed: int) -> list[Play]:
    plays = [player.play(seed), player.play(seed + 1), player.play(seed, first=1)]
    plays += [player.play(seed, scale=scale) for scale in _scales(player)]
    return plays


def _scales(player: PartPlayer) -> tuple[float, ...]:
    """Return the scales to probe; several local steps omit 2, since larger gradients may make training unstable."""
    return _SCALES[1:] if player.drifts else _SCALES


def _linear(player: PartPlayer, seed: int, plays: Sequence[Play]) -> bool:
    """Return True if the sent update is affine: it commutes with the mean of two updates, and with scaling."""
    if player.trains or player.clients > 1:
        return False
    one, other, double, half = (play.sent for play in plays)
    straight = {name: (double[name] + 2 * half[name]) / 3 for name in one}  # f(x) of an affine f
    middle = {name: (t + other[name]) / 2 for name, t in one.items()}
    return same(straight, one) and same(middle, player.middle(seed))


def _problems(
    found: Disclosure, plays: Sequence[Play], residuals: Sequence[Residual], player: PartPlayer
) -> Iterator[str]:
    """Yield the contradictions between one part's disclosure and its rounds."""
    first, again, others = plays[:3]
    at_one, scaled = residuals[:3], residuals[3:]
    if found.deterministic and noise_told(first):
        yield (
            "it discloses noise, but sends the same under every seed: noise from a fixed seed is a constant, which an "
            "attacker who knows the code can subtract"
        )
    elif share := repeated(first, again):
        also = " and for other images" if repeated(again, others) else ""
        yield (
            f"it discloses noise, but {share:.0%} of the noise is the same under another seed{also}: repeated noise is "
            "a constant, which an attacker who knows the code can subtract"
        )
    if not found.deterministic and _tells_nothing_random(first) and any(each.too_large for each in at_one):
        yield (
            f"for the same images, its update differs from seed to seed (by {sqrt(apart(first.sent, again.sent)):.0%} "
            "of the update's norm), but it discloses no noise, no bounds and no unknown coordinates"
        )
    elif text := _size(at_one):
        yield text
    elif not any(each.too_large or each.too_small for each in at_one):
        yield from (f"{text}; the unscaled update shows no problem" for text in _by_scale(scaled, _scales(player)))
    if found.zeros:
        yield (
            f"it sends zero for a share of {found.zeros:.2g} of the coordinates although their undefended values are "
            "not zero, and it discloses neither that they are unknown nor a bound"
        )
    if all(each.blind for each in at_one):
        yield (
            "it discloses that all coordinates are unknown (precision 0), but they are not zero: an adaptive attack "
            "then ignores the whole update"
        )
    elif not player.own and (share := hidden(first, again)) > HIDDEN:  # what layers draw is the same in all plays
        yield (
            f"{share:.0%} of the update's energy is the same under every seed, but it discloses that part as unknown, "
            "or with bounds as wide as the values: an attacker who knows the code can undo it"
        )
    if all(each.loose for each in at_one):
        yield "it discloses bounds more than 20 times as large as the largest error: they hide the sent values"


def _size(residuals: Sequence[Residual]) -> str:
    """Return the problem if a residual is too large or too small; ``""`` if none is."""
    large = [each for each in residuals if each.too_large]
    if large:
        worst = max(large, key=lambda each: (each.unexplained, each.worst))
        noise = ", though it discloses noise or bounds" if worst.noise.told else ""
        return (
            f"what it sends differs from what it discloses: {worst.unexplained:.1%} of the update's energy "
            f"({worst.worst.value:.1%} of '{worst.worst.name}') is left unexplained{noise}"
        )
    for each in residuals:
        if each.too_small:
            where = f" in '{each.quiet}'" if each.quiet else ""
            return (
                f"it adds less noise than it discloses{where} (over the whole update, {each.noise.ratio:.2g} times the "
                "disclosed standard deviation), which makes an adaptive attack weaker than it could be"
            )
    return ""


def _by_scale(residuals: Sequence[Residual], scales: Sequence[float]) -> Iterator[str]:
    for scale, residual in zip(scales, residuals, strict=True):
        if text := _size([residual]):
            yield f"at {scale:g} times the update, {text}"


def _tells_nothing_random(play: Play) -> bool:
    return play.channel.precision is None and play.channel.bounds is None


def _chained(players: Sequence[PartPlayer], seed: int) -> list[str]:
    """Return the problems if parts' disclosures cannot be chained, or if one drops those before it."""
    stage, problems = players[0].stage, []
    for player in players:
        raw = player.stage.raw(0)
        try:
            alone = disclosed(player.part, raw, stage.plan)
            after = disclosed(player.part, raw, stage.plan, Channel().then(_reversed))
            kept = same(after(raw.tensors), alone(_reversed(raw.tensors)))
        except Unusable as error:
            problems.append(f"{player.part!r}: after another part, {error}")
            continue
        if not kept:
            problems.append(
                f"{player.part!r}: its disclosure drops what the parts before it disclose; return `before.then(...)`"
            )
    return problems


def _together(whole: PartPlayer, players: Sequence[PartPlayer], seed: int) -> list[str]:
    """Return the problems if all parts' disclosures, chained, do not explain the sent update; else an empty list."""
    try:
        plays = [whole.play(seed), whole.play(seed + 1), whole.play(seed, first=1)]
        smooth = any(disclosed(p.part, p.stage.raw(0), p.stage.plan).exact is not None for p in players)
    except Unusable as error:
        return [f"together, {error}"]
    left = max(Residual.of(play, _DRIFT if whole.drifts else 1.0).unexplained for play in plays)
    if left <= (STAND_IN if smooth else _TOGETHER):
        return []
    return [
        f"its parts' disclosures do not hold together: {left:.0%} of the update's energy is left unexplained, because "
        "a later part hides what an earlier one discloses"
    ]


def _reversed(tensors: Tensors) -> Tensors:
    """Reverse every tensor: a change that no part undoes, unlike a factor, which clipping may hide."""
    return {name: t.flatten().flip(0).view_as(t) for name, t in tensors.items()}
