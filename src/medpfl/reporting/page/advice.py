"""The frame of pages other than an audit's: their question, the meaning of the result, and the next steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from medpfl.core.experiments.settings import Json, Settings
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS
from medpfl.reporting.flags import FLAGS
from medpfl.reporting.page.answer import Step, decisive, frontier_of
from medpfl.reporting.phrases import Cells, telling
from medpfl.reporting.words import label, model_argument, percent

__all__ = ["Advice", "of_federation", "of_frontier", "of_leakage", "of_model", "of_record", "of_training"]


class Advice(NamedTuple):
    """A page's question, what its result means, next steps, and an answer if the page has none of its own."""

    question: str
    meaning: tuple[str, ...]
    steps: tuple[Step, ...]
    answer: tuple[str, ...] = ()


_NO_PROOF = "These attacks stay within the limit; one that was not run may not."
_AUDIT = "medpfl audit DATA --model runs/train --rounds 0,5,20 --out runs/over"


def of_frontier(points: Sequence[Json], chosen: Json, model: str = "MODEL") -> Advice:
    """Return the frame of a frontier's page from its points, its recommendation, and its model as an argument."""
    question = "Which defense keeps patients' images private at the lowest cost in accuracy?"
    if chosen["state"] == "recommended":
        name = label(chosen["defense"])
        return Advice(
            question,
            (f"{name} meets the limit and costs the least accuracy of the settings tested. {_NO_PROOF}",),
            (
                Step(f"Train with {name}.", "medpfl train DATA --config recommended.yaml --out runs/train"),
                Step("Then audit the trained model over its rounds.", _AUDIT),
                Step("Repeat this if the model, the data or the training plan changes."),
            ),
            _traded(points, chosen),
        )
    meaning = "No setting that was tested can be recommended. Until one can, treat every update as patient data."
    frontier, images = f"medpfl frontier DATA --model {model}", chosen["images_needed"]
    steps = {
        "nothing learned": (
            Step("Train longer, or with a higher learning rate, until the undefended model learns.",
                 f"{frontier} --rounds 50 --out runs/longer"),
        ),
        "control failed": (
            Step("Use attacks that work without a defense. This shows which suit the model:",
                 "medpfl check-model MODEL"),
        ),
        "too few": (
            Step("Attack more images.", f"{frontier} --images {images} --out runs/more"),
        ),
    }  # fmt: skip
    other = (
        Step("Test stronger settings of these defenses, or other defenses."),
        Step("If no defense can meet the limit, decide whether a larger one is acceptable (--limit)."),
    )
    why, todo = _WHY[chosen["state"]], steps.get(chosen["state"], other)
    if chosen["state"] == "control failed" and "out-of-budget" in points[0]["flags"]:
        why, todo = _SPENT, (Step("Let the searches run longer (--minutes)."), *todo)
    if chosen["state"] == "none" and (unsure := chosen["inconclusive"]):
        some = f"{len(unsure)} settings keep" if len(unsure) > 1 else f"{label(unsure[0])} keeps"
        why = f"Unknown: {some} the leak within the limit, but the verdict is inconclusive."
        todo = (Step(_remedy([point for point in points if point["defense"] in unsure])), *other)
    return Advice(question, (meaning,), todo, (why, _bare(points[0])))


def _remedy(unsure: Sequence[Json]) -> str:
    """Return what could decide settings whose verdicts are inconclusive, by the most telling of their flags."""
    flag = telling(unsure)
    return FLAGS[flag].means if flag else "Run stronger attacks, or attack more images."


_WHY = {
    "nothing learned": "Unknown: the model has learned nothing, so there is no accuracy to lose.",
    "control failed": "Unknown: these attacks do not work on this model even without a defense.",
    "too few": "Unknown: too few images were attacked to recommend a setting.",
    "none": "None of the settings tested keeps the leak within the limit.",
}


_SPENT = "Not decided: the searches had too small a budget to find enough images, even without a defense."


def _bare(bare: Json) -> str:
    return f"Without a defense, the strongest attack reconstructs {_share(bare['asr'])} of the images."


def _traded(points: Sequence[Json], chosen: Json) -> tuple[str, str]:
    """Return the recommendation, and what it changes, in plain words."""
    bare, best = points[0], next(point for point in points if point["defense"] == chosen["defense"])
    return (
        f"{label(chosen['defense'])}, of the {len(points) - 1} settings tested.",
        f"With it, the strongest attack reconstructs {_share(best['asr'])} of the images instead of "
        f"{_share(bare['asr'])}, and the model's balanced accuracy is {percent(best['accuracy'])} instead of "
        f"{percent(bare['accuracy'])}.",
    )


def _share(rate: float | None) -> str:
    return "an unknown share" if rate is None else percent(rate)


def of_leakage(found: Mapping[int, str], settings: Settings) -> Advice:
    """Return the frame of a page on leakage over rounds, from the worst verdict of each round."""
    verdicts, rounds = set(found.values()), {verdict: _rounds(found, verdict) for verdict in found.values()}
    question = "In which rounds of the training can the server reconstruct patients' images?"
    if LEAKS in verdicts:
        return Advice(
            question,
            ("Updates of the rounds that leak give patients' images away. Treat them like the images themselves.",),
            (
                Step("Protect every round, not only the one that leaks most: an attacker chooses the round."),
                Step("Find a defense that keeps the accuracy.", frontier_of(settings)),
            ),
            (f"In {rounds[LEAKS]}, of those tested.",),
        )
    if INCONCLUSIVE in verdicts:
        return Advice(
            question,
            ("Rounds without a decision show neither a leak nor safety. Until they are decided, treat them as leaks.",),
            (
                Step("Attack more images in these rounds (--images), or use attacks that work on this model."),
                Step("See which attacks suit the model.", "medpfl check-model MODEL"),
            ),
            (f"Unknown for {rounds[INCONCLUSIVE]}; in none of those tested was a leak found.",),
        )
    return Advice(
        question,
        ("These attacks failed in the rounds that were tested. A stronger attack may succeed.",),
        (Step("Test further rounds (--rounds), and again if the model, the data or the plan changes."),),
        ("In none of those tested, by these attacks.",),
    )


def _rounds(found: Mapping[int, str], verdict: str) -> str:
    own = [str(number) for number, one in sorted(found.items()) if one == verdict]
    return f"round {own[0]}" if len(own) == 1 else f"rounds {', '.join(own[:-1])} and {own[-1]}"


def of_training(defended: bool, settings: Settings) -> Advice:
    """Return the frame of a training's page."""
    meaning = (
        "The scores hold for these images. They say nothing about privacy: only an audit shows what the updates of "
        "this training give away."
    )
    steps = [Step("Measure what a server could reconstruct from updates of this training.", _AUDIT)]
    if not defended:
        steps.append(Step("Compare defenses and their cost in accuracy.", frontier_of(settings)))
    return Advice("How good is the model after this training, and what did the clients send?", (meaning,), tuple(steps))


def of_federation(verdict: str, without_truth: bool, undecided: Cells, settings: Settings) -> Advice:
    """Return the frame of a page on a whole federation.

    Args:
        verdict: the verdict on the whole.
        without_truth: True if records were left out for lack of a truth.
        undecided: the cells of all records together, if their verdict is inconclusive.
        settings: the settings that the records share.
    """
    question = "Can patients' images be reconstructed from the updates that these sites sent?"
    meaning = {
        LEAKS: "Whoever got these updates could see patients' images. Treat stored updates like the images "
        "themselves, or delete them.",
        INCONCLUSIVE: "These records show neither a leak nor safety. Until that is decided, treat them as leaks.",
    }.get(verdict, "These attacks failed on these records. A stronger attack may succeed.")
    steps = [Step("Compare defenses on one site's images before the next round.", frontier_of(settings))]
    if without_truth:
        steps.insert(
            0, Step("Give the images behind the records that were left out (--truth), and repeat the command.")
        )
    first = decisive(undecided, settings) if undecided else ()
    found = [step._replace(text=step.text.format(where="for all records together")) for step in first]
    return Advice(question, (meaning,), (*found, *steps))


def of_record(verdict: str) -> Advice:
    """Return the frame of a page on a record from its verdict."""
    question = "Does this record hold the update of the training that it states?"
    return {
        "right": Advice(
            question,
            ("An audit of this record says something about the training that really took place.",),
            (Step("Audit it.", "medpfl audit RECORD --truth IMAGES --model MODEL --out runs/record"),),
        ),
        "wrong": Advice(
            question,
            ("An audit of this record would say nothing: the update is not that of the stated training.",),
            (Step("Mend the cause named above, and record the update again."),),
        ),
    }.get(
        verdict,
        Advice(
            question,
            ("What could not be verified is listed below. An audit of this record is as good as these assumptions.",),
            (Step("Give the images and the model.", "medpfl inspect RECORD --truth IMAGES --model MODEL"),),
        ),
    )


def of_model(check: Json) -> Advice:
    """Return the frame of a page on a model from the fields of a `medpfl.inspection.check.ModelCheck`."""
    exact = [
        one for one in check["linear"] if one["read"] in ("exactly", "up to a factor") and one["pixels_themselves"]
    ]
    applies = [name for name, why in check["attacks"].items() if not why]
    answer = "No layer gives an image away by itself."
    meaning = "That is no safety: only an audit shows whether the attacks that apply find the images."
    if exact:
        answer = "An update of one image contains that image: it can be computed without any search."
        meaning = "Treat updates of this model as patient data, also those of batches: an audit shows what they reveal."
    model = model_argument(check["model"])
    text, options = "Test it with images and attacks that apply.", [f"--attack {name}" for name in applies[-3:]]
    if not applies:
        text, options = "No attack applies as it is. Test it in eval mode, one image at a time.", ["--mode eval"]
    command = " ".join(["medpfl audit IMAGES --model", model, *options, "--out runs/mine"])
    return Advice(
        "What do updates of this model reveal, before any image is seen?",
        (meaning,),
        (Step(text, command),),
        (answer, f"Of MedPFL's attacks, {len(applies)} of {len(check['attacks'])} apply to it."),
    )  # fmt: skip
