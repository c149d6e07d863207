"""What a defense does, against what it says of itself: an attack that is told something wrong fails for that reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import sqrt
from typing import Any

import torch
from torch import nn

from medpfl.auditing.defense_parts import at_client, parts_of
from medpfl.auditing.probe.plays import STAND_IN, PartPlayer, Play, Stage, Unusable, apart, disclosed, draw_seed
from medpfl.auditing.probe.residuals import HIDDEN, Residual, hidden, is_identity, noise_told, repeated, same
from medpfl.auditing.recorded import behind
from medpfl.core.plan import Plan
from medpfl.core.roles import Defense
from medpfl.core.types import Batch, Channel, Tensors

__all__ = ["Disclosure", "probe"]

_SCALES = (2.0, 0.5)

_DRIFT = 4.0
"""Factor on what counts as too much or too little noise where noise enters several local steps: a step's gradient
depends on the noise of the steps before it, which no precision can tell."""


_TOGETHER = 1e-2
"""Share of the energy that the disclosures of several parts together may leave open: 10 % of the norm. Each is exact by
itself; how noise passes the next part is an approximation (`Channel.then`), which leaves up to 0.002."""


@dataclass(frozen=True)
class Disclosure:
    """What the probe found of a defense.

    Attributes:
        changes: whether what the server gets differs from the undefended update in any round that was played.
        silent: whether the defense, or a part of it, changes what is sent and tells nothing of that.
        deterministic: whether the same images, order and masks give the same update under every seed of the defense.
        linear: whether what is sent is an affine function of the update while the defense's seed is held fixed.
        zeros: share of the coordinates that are sent as zero, are not zero in the undefended update, and are told
            neither as unknown nor as bounded.
        unexplained: share of the energy (sum of squares) of what is sent that the told noise and bounds leave open.
        problems: where the disclosure contradicts what was found, in sentences; empty where it holds.
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
        """Whether an attack that is told of the defense is told what there is to know.

        >>> Disclosure(changes=True, silent=True, deterministic=True, linear=True).holds
        False
        """
        return not self.silent and not self.problems

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it.

        >>> found = Disclosure(changes=True, silent=False, deterministic=True, linear=True, problems=("a", "b"))
        >>> Disclosure.from_dict(found.to_dict()) == found
        True
        """
        return {**asdict(self), "problems": list(self.problems)}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Disclosure:
        """Back from JSON."""
        return cls(**{**row, "problems": tuple(row["problems"])})


def probe(
    defense: Defense, model: nn.Module, plan: Plan, batches: Sequence[Batch], generator: torch.Generator
) -> Disclosure:
    """Play a defense, and compare what it sends with what it discloses.

    The same round is played under another seed of the defense, with other images, and with the update times 2 and
    times 1/2; batch order and dropout masks are the same in all. Each part of a composed defense is probed by itself,
    and then all together as they are, with another seed and with other images. A part that sums over clients is probed
    on the sum of as few clients as its settings allow.

    It takes at most 10 local updates for a part that acts inside the local steps, 6 for one that changes layers or
    images, 2 for all others together, and as many as for the costliest part for all parts as one.

    Not seen: what a defense does in later rounds only (error feedback), and what it does to images or at scales that
    were not played.

    Args:
        defense: its parts that act at the server only are left out; of a recorded update, the claimed defense.
        model: as the server sends it, before the defense's `model` moment, with its weights.
        plan: of the clients.
        batches: one or more of the plan's images, of which the first two are used.
        generator: on the CPU; the only source of randomness.

    Raises:
        InputError: the defense cannot be played on this model under this plan.
    """
    acting = at_client(behind(defense))
    parts = parts_of(acting)
    stage = Stage(model, plan, batches, draw_seed(generator))
    players = [PartPlayer(part, stage, generator) for part in parts]
    found = [_found(player, draw_seed(generator)) for player in players]
    # What parts tell of single updates may not hold of their sum: then nothing is told of it (`Composed.disclose`).
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
    """What the plays of one part show."""
    try:
        plays = _plays(player, seed)
    except Unusable as error:
        # Whether it changes anything is not known without its channel; a defense is not taken for harmless.
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
        return found  # it says nothing that could be wrong
    return replace(found, problems=tuple(_problems(found, plays, residuals, player)))


def _plays(player: PartPlayer, seed: int) -> list[Play]:
    plays = [player.play(seed), player.play(seed + 1), player.play(seed, first=1)]
    plays += [player.play(seed, scale=scale) for scale in _scales(player)]
    return plays


def _scales(player: PartPlayer) -> tuple[float, ...]:
    """Of the update; larger gradients in several local steps would be another training, with other instabilities."""
    return _SCALES[1:] if player.drifts else _SCALES


def _linear(player: PartPlayer, seed: int, plays: Sequence[Play]) -> bool:
    """Whether the mean of two updates, and multiples of one, are sent as the mean and as multiples."""
    if player.trains or player.clients > 1:
        return False
    one, other, double, half = (play.sent for play in plays)
    straight = {name: (double[name] + 2 * half[name]) / 3 for name in one}  # f(x) of an affine f
    middle = {name: (t + other[name]) / 2 for name, t in one.items()}
    return same(straight, one) and same(middle, player.middle(seed))


def _problems(
    found: Disclosure, plays: Sequence[Play], residuals: Sequence[Residual], player: PartPlayer
) -> Iterator[str]:
    """Where the disclosure of one part contradicts its plays."""
    first, again, others = plays[:3]
    at_one, scaled = residuals[:3], residuals[3:]
    if found.deterministic and noise_told(first):
        yield (
            "it discloses noise, but what it sends is the same under every seed: noise of a fixed seed is a constant, "
            "which an attacker who knows the code subtracts"
        )
    elif share := repeated(first, again):
        also = " and for other images" if repeated(again, others) else ""
        yield (
            f"it discloses noise, but {share:.0%} of the noise is the same under another seed{also}: what repeats is a "
            "constant, which an attacker who knows the code subtracts"
        )
    if not found.deterministic and _tells_nothing_random(first) and any(each.too_large for each in at_one):
        yield (
            f"what it sends of the same images differs from seed to seed (by {sqrt(apart(first.sent, again.sent)):.0%} "
            "of the update's norm), but it discloses no noise, no bounds and no unknown coordinates"
        )
    elif text := _size(at_one):
        yield text
    elif not any(each.too_large or each.too_small for each in at_one):
        yield from (f"{text}, though it holds for the update as it is" for text in _by_scale(scaled, _scales(player)))
    if found.zeros:
        yield (
            f"it sends zero for {found.zeros:.2g} of the coordinates, whose undefended values are not zero, and "
            "discloses neither that they are unknown nor a bound"
        )
    if all(each.blind for each in at_one):
        yield (
            "it discloses that all coordinates are unknown (precision 0), but they are not zero: an attack that is "
            "told so uses nothing of the update"
        )
    elif not player.own and (share := hidden(first, again)) > HIDDEN:  # what layers draw is the same in all plays
        yield (
            f"{share:.0%} of the update's energy is the same under every seed, and it discloses that as unknown or "
            "within bounds as wide as what is sent: an attacker who knows the code undoes it"
        )
    if all(each.loose for each in at_one):
        yield "it discloses bounds that are more than 20 times as large as the largest error: they hide what is sent"


def _size(residuals: Sequence[Residual]) -> str:
    """Too large or too small a residual, in words; "" where it is neither."""
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
                f"it adds less noise than it discloses{where} (over the update, {each.noise.ratio:.2g} of the told "
                "deviation): an attack that is told of noise that is not there is weaker than it could be"
            )
    return ""


def _by_scale(residuals: Sequence[Residual], scales: Sequence[float]) -> Iterator[str]:
    for scale, residual in zip(scales, residuals, strict=True):
        if text := _size([residual]):
            yield f"at {scale:g} times the update, {text}"


def _tells_nothing_random(play: Play) -> bool:
    return play.channel.precision is None and play.channel.bounds is None


def _chained(players: Sequence[PartPlayer], seed: int) -> list[str]:
    """Whether the parts' disclosures can be put together, and each keeps what those before it disclose."""
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
                f"{player.part!r}: its disclosure drops what the parts before it disclose: return `before.then(...)`"
            )
    return problems


def _together(whole: PartPlayer, players: Sequence[PartPlayer], seed: int) -> list[str]:
    """Return where the disclosures of all parts, put together, do not tell what the parts send; empty where they do."""
    try:
        plays = [whole.play(seed), whole.play(seed + 1), whole.play(seed, first=1)]
        smooth = any(disclosed(p.part, p.stage.raw(0), p.stage.plan).exact is not None for p in players)
    except Unusable as error:
        return [f"together, {error}"]
    left = max(Residual.of(play, _DRIFT if whole.drifts else 1.0).unexplained for play in plays)
    if left <= (STAND_IN if smooth else _TOGETHER):
        return []
    return [
        f"its parts' disclosures do not hold together: {left:.0%} of the update's energy is left unexplained, since a "
        "later part hides what an earlier one discloses"
    ]


def _reversed(tensors: Tensors) -> Tensors:
    """A change that no part undoes: clipping hides a factor."""
    return {name: t.flatten().flip(0).view_as(t) for name, t in tensors.items()}
