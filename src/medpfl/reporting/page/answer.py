"""The top of an audit's page: the question, the answer in plain words, its meaning, and the next steps.

The words are for a data protection officer, who knows neither attacks nor statistics. The numbers stand below them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from medpfl.core.experiments.settings import Settings
from medpfl.core.messages import counted
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, NO_LEAK, RECORDED, UNDEFENDED
from medpfl.judging.types import Cell, Union
from medpfl.reporting.flags import FLAGS
from medpfl.reporting.page.limits import attacks_to_add
from medpfl.reporting.phrases import (
    EASY,
    Cells,
    easier,
    grouped,
    hits,
    images_needed,
    in_number,
    is_recorded,
    reason,
    spent,
    trials,
)
from medpfl.reporting.words import brief, known, model_argument, percents, several, share

__all__ = ["QUESTION", "Answer", "Bar", "Step", "answered", "bars", "decisive", "frontier_of"]

QUESTION = "Can the server reconstruct patients' images from what a hospital sends?"

_SHOWN = 2
"""Maximum number of defenses named in a sentence."""


class Step(NamedTuple):
    """A next step, with a command if there is one."""

    text: str
    command: str = ""


class Answer(NamedTuple):
    """The top of an audit's page.

    Attributes:
        sentences: two pairs of a verdict and a plain sentence, on no defense and on the defenses; a verdict may be
            ``None``.
        meaning: sentences on what follows for the patients.
        steps: what to do next, at least one.
    """

    sentences: tuple[tuple[str | None, str], tuple[str | None, str]]
    meaning: tuple[str, ...]
    steps: tuple[Step, ...]


class Bar(NamedTuple):
    """A defense's rates for all attacks together.

    Attributes:
        defense: the spec.
        verdict: the verdict on the defense.
        rates: name, share in [0, 1] or ``None``, text, and the share that guesses without the update explain, for
            each of the two ways to leak.
        few: a note if the images share few updates, else ``""``.
        run: the run's name, on a page of several.
    """

    defense: str
    verdict: str
    rates: tuple[tuple[str, float | None, str, float | None], ...]
    few: str = ""
    run: str = ""


def answered(summary: Cells, settings: Settings) -> Answer:
    """Return the top of an audit's page."""
    bare, groups = _split(summary)
    first, second = _undefended(bare), _defended(groups, bool(bare))
    return Answer(
        ((first[0], in_number(first[1], summary)), (second[0], in_number(second[1], summary))),
        tuple(in_number(text, summary) for text in _meaning(bare, groups, settings)),
        _steps(bare, groups, settings),
    )


def bars(summary: Cells) -> list[Bar]:
    """Return the rates of all attacks together: without a defense, then for each defense."""
    bare, groups = _split(summary)
    return [_bar(cells) for cells in ([bare] if bare else []) + groups]


def _bar(cells: Cells) -> Bar:
    union = cells[0].union
    rates = (
        ("reconstructed", union.asr.value, _some(hits(union.asr, union.images), union), union.asr_floor),
        ("re-identified", union.identified.value, _some(hits(union.identified, union.images), union),
         union.identified_floor),
    )  # fmt: skip
    few = trials(union.images, union.updates, union.per_update)
    return Bar(cells[0].defense, union.verdict, tuple(one for one in rates if known(one[1])), few)


def _split(summary: Cells) -> tuple[list[Cell], list[list[Cell]]]:
    groups = {cells[0].defense: cells for cells in grouped(summary)}
    return groups.pop(UNDEFENDED, []), list(groups.values())


def _some(count: int | None, union: Union) -> str:
    if count is None:
        return "not tested"
    return f"{count or 'none'} of {union.images}"


def _names(groups: Sequence[Cells]) -> str:
    """Return the defenses' names, the first few only."""
    short = brief([cells[0].defense for cells in groups])
    names = [_name(spec, short[spec]) for spec in short]
    more = len(names) - _SHOWN
    if more > 0:
        return f"{', '.join(names[:_SHOWN])} and {more} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _name(spec: str, short: str) -> str:
    return "the recorded update's own defense" if spec == RECORDED else short


def _undefended(cells: Cells) -> tuple[str | None, str]:
    if not cells:
        return None, "This test was not run without a defense, so it is unknown whether its attacks work at all."
    union = cells[0].union
    read, told = hits(union.asr, union.images), hits(union.identified, union.images)
    if not union.images or read is None:
        return union.verdict, "Without a defense, the test has no result."
    if union.verdict == LEAKS:
        return LEAKS, f"Yes: without a defense, the server {_can(read, told, union)}."
    if "control-failed" in cells[0].flags:
        why = "these attacks do not work on this model"
        if spent(cells):
            why = "the searches had too small a budget to find an image,"
        return union.verdict, f"Unknown: {why} even without a defense."
    if union.verdict == NO_LEAK:
        return NO_LEAK, f"Not by these attacks: without a defense, the server {_can(read, told, union)}."
    return INCONCLUSIVE, f"Unknown: without a defense, the server {_can(read, told, union)}, which decides nothing."


def _can(read: int, told: int | None, union: Union) -> str:
    """Return what a server did: ``reconstructed 5 of 24 images almost exactly``."""
    images = counted(union.images, "image")
    if read:
        most = f"reconstructed {'all' if read == union.images > 1 else f'{read} of'} {images} almost exactly"
        return most if not told or told <= read else f"{most}, and {told} guesses show which image it was"
    if told and "recognized" in union.leaks_by:
        return f"reconstructed none of {images}, but {told} guesses still show which image it was"
    return f"reconstructed none of {images}"


def _defended(groups: Sequence[Cells], control: bool) -> tuple[str | None, str]:
    if not groups:
        return None, "No defense was tested, so it is unknown whether one would help."
    if len(groups) == 1:
        return _one(groups[0])
    leaking, holding, unsure = (_in(groups, verdict) for verdict in (LEAKS, NO_LEAK, INCONCLUSIVE))
    parts = [
        f"{_names(leaking)} {'does' if len(leaking) == 1 else 'do'} not protect these images" if leaking else "",
        f"with {_names(holding)}, these attacks failed" if holding else "",
        f"for {_names(unsure)}, the test decides nothing" if unsure else "",
    ]
    worst = next(v for v, own in ((LEAKS, leaking), (INCONCLUSIVE, unsure), (NO_LEAK, holding)) if own)
    text = "; ".join(filter(None, parts))
    return worst, f"Of {len(groups)} defenses: {text}."


def _in(groups: Sequence[Cells], verdict: str) -> list[Cells]:
    return [cells for cells in groups if cells[0].union.verdict == verdict]


def _one(cells: Cells) -> tuple[str | None, str]:
    union, name = cells[0].union, _names([cells])
    read, told = hits(union.asr, union.images), hits(union.identified, union.images)
    opening = "From the recorded update" if cells[0].defense == RECORDED else f"With {name}"
    if not union.images or read is None:
        return union.verdict, f"{opening}, the test has no result."
    deeds = f"{opening}, the server {'still ' if read else ''}{_can(read, told, union)}"
    if union.verdict == LEAKS:
        end = "" if cells[0].defense == RECORDED else ": this defense does not protect these images"
        return LEAKS, f"{deeds}{end}."
    if union.verdict == NO_LEAK:
        return NO_LEAK, f"{deeds}: these attacks failed, but others may not."
    return INCONCLUSIVE, f"{deeds}, but that decides nothing: {_plain(reason(cells))}."


def _plain(why: str) -> str:
    """Return a reason without its hints at options and pages."""
    return re.sub(r" \((?:--images|docs/)[^)]*\)", "", why)


def _meaning(bare: Cells, groups: Sequence[Cells], settings: Settings) -> tuple[str, ...]:
    leaking, holding, unsure = (_in(groups, verdict) for verdict in (LEAKS, NO_LEAK, INCONCLUSIVE))
    open_ = bool(bare) and bare[0].union.verdict == LEAKS
    found = []
    if open_ and not groups:
        found.append(
            "Whoever runs the server, or reads what it receives, can see patients' images. The updates are patient "
            "data, and must be protected like them."
        )
    if groups and (open_ or leaking):
        who = "without a defense" if open_ else ""
        who += (" or " if open_ and leaking else "") + (f"with {_names(leaking)}" if leaking else "")
        found.append(f"Updates sent {who} give patients' images away. Treat them like the images themselves.")
    if open_ or leaking:
        told = [bare] * open_ + leaking[:1]
        found[-1:] = [" ".join(filter(None, [*found[-1:], _certainty(told[0])]))]
        found += dict.fromkeys(_people(cells, settings) for cells in told)
    if holding:
        found.append(
            f"{_names(holding)} stopped the attacks that were run: with 95 % confidence, they expose fewer than "
            f"{share(holding[0][0].union.tolerance)} of such images. A stronger attack may still succeed."
        )
    if unsure or (bare and bare[0].union.verdict == INCONCLUSIVE):
        found.append(
            "An undecided test shows neither a leak nor safety. Until it is decided, treat these updates as if they "
            "leak."
        )
    if not found:
        found.append("These attacks did not succeed here. That is no proof of safety: a stronger attack may succeed.")
    return tuple(filter(None, found))


def _certainty(cells: Cells) -> str:
    """Return what the interval says; ``""`` if there is none, or all ways to leak are by recognition."""
    rate = cells[0].union.asr
    if not rate.value or not (known(rate.low) and known(rate.high)):
        return ""
    return f"With 95 % confidence, these attacks reconstruct {percents(rate.low, rate.high)} of such images."


def _people(cells: Cells, settings: Settings) -> str:
    """Return a sentence on the exposed patients; ``""`` if each has one image, which the answer counts already."""
    told = [cell.by_patient for cell in cells if cell.by_patient is not None]
    if not told:
        unknown = "patients" in settings.data and settings.data["patients"] is None
        return "The data does not say which images belong to one patient, so images are counted." if unknown else ""
    worst = max(told, key=lambda one: (one.read_back.value or 0.0, one.identified.value or 0.0))
    ways = {"reconstructed": worst.read_back, "re-identified": worst.identified}
    counts = {way: hits(rate, worst.patients) for way, rate in ways.items()}
    some = [f"{count or 'none'} by a {way} image" for way, count in counts.items() if count is not None]
    where = "without a defense" if cells[0].defense == UNDEFENDED else f"with {_names([cells])}"
    return f"Of {counted(worst.patients, 'attacked patient')}, exposed {where}: {', '.join(some)}."


_SAMPLES = "Samples("
"""Start of the source of the embedded images, which are public: a test of them is a first look."""

_OWN = "medpfl audit path/to/images --model path/to/model.py:make_model --out runs/mine"


def frontier_of(settings: Settings) -> str:
    """Return a command that trains the audited model under a defense that every model takes."""
    model = model_argument("".join(several(settings.experiment.get("model"))[:1]))
    size = f" --size {settings.data['shape'][-1]}" if settings.data.get("shape") else ""
    return f"medpfl frontier DATA --model {model}{size} --defense '{_NOISES}' --out runs/frontier"


_EASIER = Step("See if the same images are exposed under an easier plan: a record's own plan cannot be changed.", EASY)
_MORE_RECORDS = Step(
    "To decide the test, audit more records together: each further update is a further trial.",
    'medpfl audit "updates/*.safetensors" --model MODEL --out runs/federation',
)
_OF_IMAGES = ("small-gallery", "control-low", "prior-only")
"""Flags whose advice is to attack more images, which a record does not have."""
_NOISES = "GaussianNoise(scale=geom(0.001, 0.1, 4))"


def _steps(bare: Cells, groups: Sequence[Cells], settings: Settings) -> tuple[Step, ...]:
    leaking, holding, unsure = (_in(groups, verdict) for verdict in (LEAKS, NO_LEAK, INCONCLUSIVE))
    public = str(settings.data.get("source", "")).startswith(_SAMPLES)
    failed = bool(bare) and "control-failed" in bare[0].flags and bare[0].union.verdict == INCONCLUSIVE
    advised: dict[tuple[Step, ...], list[Cells]] = {}
    for cells in ([bare] if bare and bare[0].union.verdict == INCONCLUSIVE else []) + unsure:
        advised.setdefault(decisive(cells, settings), []).append(cells)
    found = [
        Step(step.text.format(where=_where(same)), step.command) for steps, same in advised.items() for step in steps
    ]
    if leaking:
        found.append(Step(f"Do not rely on {_names(leaking)} at this strength. Try it stronger, or another defense."))
    if not groups and not failed:
        found.append(_defend(settings))
    if holding:
        found.append(Step(f"Before you use {_names(holding)}, measure the cost in accuracy.", frontier_of(settings)))
        found.append(Step("Test again if the model, the data, the training plan or the defense changes."))
    elif not public and not failed and (leaking or not groups):
        found.append(Step("Find the defense that costs the least accuracy.", frontier_of(settings)))
    if public:
        found.append(Step("These are public sample images. Test your own images and model.", _OWN))
    if more := attacks_to_add([*bare, *(cell for cells in groups for cell in cells)], settings):
        found.append(Step(more))
    return tuple(dict.fromkeys(found))


def _defend(settings: Settings) -> Step:
    """Return the step that tests a first defense: differential privacy where the model and its mode allow it."""
    only = "differential privacy (DPSGD) bounds attacks that nobody knows yet"
    if settings.model.get("batch_norm_layers") == 0 or "mode='eval'" in str(settings.experiment.get("plan")):
        text, defense = f"Test a defense on the same images. Only {only}.", "DPSGD(noise=1.0)"
    else:
        text = "Test a defense on the same images, such as noise on the update. "
        text += f"(Only {only}, but it needs a model without batch norm in train mode.)"
        defense = "GaussianNoise(scale=0.01)"
    return Step(text, f"medpfl audit ... --defense '{defense}'")


def _where(groups: Sequence[Cells]) -> str:
    bare, defended = _split([cell for cells in groups for cell in cells])
    parts = ["without a defense" if bare else "", f"for {_names(defended)}" if defended else ""]
    return " and ".join(filter(None, parts))


def decisive(cells: Cells, settings: Settings) -> tuple[Step, ...]:
    """Return steps that would turn an inconclusive result into another; ``{where}`` stands for the defenses.

    For a record, none is an option that an audit of it ignores: its plan and images are as they were.
    """
    recorded = is_recorded(settings)
    union = cells[0].union
    flags = dict.fromkeys(union.flags or (flag for cell in cells for flag in cell.flags))
    if "control-failed" in flags:
        longer = Step("Let the searches run longer (--minutes).")
        other = Step("Run an attack that works without a defense first: another one, or with more steps (--attack).")
        if options := easier(settings):
            other = Step("Run an attack that works without a defense first.", f"medpfl audit ... {' '.join(options)}")
        return (
            *([longer] if spent(cells) else []),
            Step("See which attacks suit this model, and what its updates reveal.", "medpfl check-model MODEL"),
            other,
            *([_EASIER] if recorded else []),
        )
    naive = any("naive-attack" in cell.flags for cell in cells) and not any(cell.knows_defense for cell in cells)
    found = [Step("To decide the test {where}, repeat it without --naive: the attacker must know the defense.")]
    if recorded and images_needed(union):
        return (*found[: int(naive)], _MORE_RECORDS)
    if needed := images_needed(union):
        need = f"medpfl audit ... --images {needed}"
        more = Step("To decide the test {where}, attack more images.", need)
        return (*found, more) if naive else (more,)
    if naive:
        return tuple(found)
    told = [FLAGS[flag].means for flag in flags if flag in FLAGS and not (recorded and flag in _OF_IMAGES)]
    general = "Run stronger attacks, more steps, or " + ("audit more records together." if recorded else "more images.")
    advice = told[0] if told else general
    return (Step(f"To decide the test {{where}}: {advice[:1].lower()}{advice[1:]}"),)
