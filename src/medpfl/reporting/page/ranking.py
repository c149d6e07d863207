"""Which settings of several audits can be ranked: those with the same test, in which a failure would be evidence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from medpfl.core.experiments.settings import Settings
from medpfl.core.messages import counted
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS
from medpfl.judging.summary import Context
from medpfl.judging.types import Cell, Rate
from medpfl.reporting.phrases import REASONS, Cells, extent, grouped, hits, reason
from medpfl.reporting.words import DASH, label

__all__ = ["Compared", "Setting", "differing_tests", "ranking_sentences"]


class Compared(Protocol):
    """The parts of an audit's report that are compared."""

    @property
    def settings(self) -> Settings:
        """The audit's settings."""
        ...

    @property
    def summary(self) -> Cells:
        """Its cells."""
        ...

    @property
    def pixels(self) -> tuple[str, str]:
        """The key's tag, and the images' digest under that key."""
        ...


class Setting(NamedTuple):
    """One defense in one run.

    Attributes:
        run: the run's name.
        cells: the defense's cells.
        doubt: why few exposed images are no evidence here; ``""`` if they are.
    """

    run: str
    cells: Cells
    doubt: str

    @property
    def words(self) -> str:
        """The defense after ``with`` or ``without``."""
        name = label(self.cells[0].defense)
        return "without a defense" if name == "no defense" else f"with {name}"

    @property
    def counts(self) -> str:
        """The numbers of images that were reconstructed and re-identified."""
        union = self.cells[0].union
        read, told = hits(union.asr, union.images), hits(union.identified, union.images)
        more = "" if told is None else f", {told or 'none'} re-identified"
        return f"{read or 'none'} of {counted(union.images, 'image')} reconstructed{more}"

    @property
    def extent(self) -> tuple[float, float]:
        """A key to sort by: both rates."""
        return extent(self.cells[0].union)

    @property
    def leaks(self) -> bool:
        """True if the setting leaks, which no doubt takes back."""
        return self.cells[0].union.verdict == LEAKS


def ranking_sentences(runs: Sequence[Compared], names: Sequence[str]) -> list[str]:
    """Return sentences: the least and the most exposed setting of each test, what is not ranked, and why.

    Settings are ranked only if the same attacks had the same images. The least exposed one is chosen among those in
    which a failed attack is evidence; any leak may be the most exposed one.
    """
    tests = _tests(runs)
    settings = [_settings(name, one) for name, one in zip(names, runs, strict=True)]
    if not any(settings):
        return ["None of these runs has a result."]
    found = []
    for same in tests:
        ranked = _ranked([one for i in same for one in settings[i]])
        if ranked and len(tests) > 1:
            where = f"{'Within' if len(same) == 1 else 'Among'} {_and([names[i] for i in same])}"
            ranked = f"{where}: {ranked[0].lower()}{ranked[1:]}"
        found.append(ranked)
    return [
        *(list(filter(None, found)) or ["No two of these settings can be ranked."]),
        *_left_out([one for own in settings for one in own if one.doubt]),
        *_apart(runs, names, tests),
    ]


def _ranked(settings: Sequence[Setting]) -> str:
    """Return a sentence on the least and the most exposed setting; ``""`` if there are no two to rank."""
    ordered = sorted((one for one in settings if not one.doubt or one.leaks), key=lambda one: one.extent)
    low = next((one for one in ordered if not one.doubt), None)
    high = ordered[-1] if ordered else None
    if low is None or high is None or low is high:
        return ""
    if low.extent == high.extent:
        level = [one for one in ordered if one.extent == low.extent]
        who = "All settings" if len(level) == len(settings) else _and([f"{one.run} {one.words}" for one in level])
        told = list(dict.fromkeys(one.counts for one in level))
        what = f"as many images: {told[0]}" if len(told) == 1 else f"the same share of images: {'; '.join(told)}"
        return f"{who[0].upper()}{who[1:]} expose {what}."
    chance = " Their 95 % intervals overlap, so the difference may be chance." if _overlap(low, high) else ""
    too = " Both leak." if low.leaks and high.leaks else ""
    return (
        f"The fewest images are exposed in {low.run} {low.words} ({low.counts}), the most in {high.run} {high.words} "
        f"({high.counts}).{too}{chance}"
    )


def _settings(run: str, one: Compared) -> list[Setting]:
    """Return a run's settings that have a result."""
    return [_setting(run, cells, one.settings) for cells in grouped(one.summary) if cells[0].union.images]


def _setting(run: str, cells: Cells, settings: Settings) -> Setting:
    if cells[0].union.verdict == INCONCLUSIVE:
        return Setting(run, cells, f"inconclusive: {reason(cells)}")
    context = Context.of(settings)
    doubts = [_doubt(context, one, cells) for one in cells]
    return Setting(run, cells, doubts[0] if cells[0].union.verdict == LEAKS and all(doubts) else "")


_DOUBTS = ("control-failed", "disclosure-unused", "incomplete", "out-of-budget")
_NAIVE = "these attacks did not know the defense"
_UNUSED = "these attacks made no use of what the defense discloses"


def _doubt(context: Context, cell: Cell, cells: Cells) -> str:
    """Return why the images that an attack did not expose are no evidence; ``""`` if they are."""
    unused = ["disclosure-unused"] if _ignores_disclosure(context, cell, cells) else []
    knows = context.reason(cell.defense, bool(cell.knows_defense))
    flag = next(iter([*(flag for flag in _DOUBTS if flag in cell.flags), *unused, *filter(None, [knows])]), "")
    return {"naive-attack": _NAIVE, "disclosure-unused": _UNUSED}.get(flag, REASONS.get(flag, flag))


def _ignores_disclosure(context: Context, cell: Cell, cells: Cells) -> bool:
    """Return True if an attack has the scores that it has without the disclosure; a cell that leaks gets no flag."""
    if not cell.knows_defense or context.reason(cell.defense, knows=False) != "naive-attack":
        return False
    naive = [one for one in cells if one.attack == cell.attack and not one.knows_defense]
    return any(_scores(one) == _scores(cell) for one in naive)


def _scores(cell: Cell) -> tuple[Rate | float | None, ...]:
    return cell.asr, cell.identified, cell.ssim, cell.psnr, cell.mse, cell.ncc


def _left_out(settings: Sequence[Setting]) -> list[str]:
    """Return a sentence on the settings that cannot be the least exposed, by reason."""
    by_reason: dict[str, dict[str, list[str]]] = {}
    for one in settings:
        by_reason.setdefault(one.doubt, {}).setdefault(one.run, []).append(one.words)
    told = [f"{_and([f'{run} {_and(some)}' for run, some in runs.items()])} ({why})" for why, runs in by_reason.items()]
    some = "; ".join(told)
    return [f"Not counted among the least exposed, since a failed attack shows nothing there: {some}."] if told else []


def _test(settings: Settings) -> dict[str, str]:
    """Return, by name, what must be equal in two audits that are ranked."""
    asked, data = settings.experiment, settings.data
    given = [grant for grant in settings.grants or () if grant != "defense"]  # only runs with a defense have it
    return {
        "attacks": ", ".join(asked.get("attacks", ())) or DASH,
        "grants": ", ".join(given) or "none",
        "number of images": str(asked.get("images", DASH)),
        "data": json.dumps([data.get(name) for name in ("source", "images", "shape", "classes")]),
        "draws of weights": str(asked.get("draws", DASH)),
        "seed": str(settings.seed),
        "tolerance": str(settings.tolerance),
    }


def differing_tests(runs: Sequence[Compared]) -> dict[str, list[str]]:
    """Return, by name, what differs in the runs' tests, with its value in every run."""
    told = [_test(one.settings) for one in runs]
    keys = {key for key, _ in (one.pixels for one in runs)}
    if len(keys) == 1 and len({one.pixels for one in runs}) > 1:  # digests under different keys do not compare
        told = [{**own, "data": one.pixels[1]} for own, one in zip(told, runs, strict=True)]
    return {name: [own[name] for own in told] for name in told[0] if len({own[name] for own in told}) > 1}


def _tests(runs: Sequence[Compared]) -> list[list[int]]:
    """Return the runs' numbers, those with the same test together."""
    found: list[list[int]] = []
    for i, one in enumerate(runs):
        same = next((group for group in found if not differing_tests([runs[group[0]], one])), None)
        found.append([i]) if same is None else same.append(i)
    return found


def _apart(runs: Sequence[Compared], names: Sequence[str], tests: Sequence[Sequence[int]]) -> list[str]:
    """Return a sentence on why runs are not ranked against each other; none if all have the same test."""
    if len(tests) == 1:
        return []
    how = _differing(differing_tests(runs), names)
    return [f"Runs are ranked only if their tests are the same. These tests differ in {how}."]


def _differing(found: Mapping[str, Sequence[str]], names: Sequence[str]) -> str:
    plain = {name: values for name, values in found.items() if name != "data"}
    told = [
        f"{name} ({'; '.join(f'{run}: {value}' for run, value in zip(names, values, strict=True))})"
        for name, values in plain.items()
    ]
    return _and([*told, *(["data"] if "data" in found else [])])


def _and(some: Sequence[str]) -> str:
    return some[0] if len(some) == 1 else f"{', '.join(some[:-1])} and {some[-1]}"


def _overlap(low: Setting, high: Setting) -> bool:
    """Return True if the intervals of both rates overlap."""
    pairs = [(one.asr, one.identified) for one in (low.cells[0].union, high.cells[0].union)]
    return all(_meet(a, b) for a, b in zip(*pairs, strict=True))


def _meet(a: Rate, b: Rate) -> bool:
    return a.ends is None or b.ends is None or (a.ends[0] <= b.ends[1] and b.ends[0] <= a.ends[1])
