"""A frontier as sentences, table and page, made from its points alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medpfl.core.atomic_files import write
from medpfl.core.experiments.settings import Json
from medpfl.reporting.figures.bounds import bound_section
from medpfl.reporting.figures.frontier import NAMES, frontier_figure
from medpfl.reporting.phrases import REASONS, telling, trials
from medpfl.reporting.verdict import MARKS
from medpfl.reporting.words import DASH, epsilons, known, label, model_argument, number, percent, percents, similarity

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["COLUMNS", "frontier_table", "how_to_read", "legend", "sentences", "write_frontier_page"]

Point = Json
Points = Sequence[Point]
COLUMNS = (
    "No.",
    "Defense",
    "Accuracy",
    "Accuracy lost",
    "Reconstructed",
    "SSIM",
    "Re-identified",
    "Epsilon",
    "Verdict",
    "Mark",
)


def sentences(points: Points, chosen: Json, settings: Json) -> tuple[str, str]:
    """Return a sentence on the undefended model and the strongest attack on it, and one on the recommendation."""
    bare = points[0]
    first = (
        f"Without a defense, the model has a balanced accuracy of {_accuracy(bare)} on the {settings['judged']} "
        f"images. The strongest attack reconstructs {_rate(bare, 'asr', chosen)} of the attacked images, with a mean "
        f"SSIM of {_ssim(bare, chosen)}, and re-identifies {_rate(bare, 'identified', chosen)}."
    )
    return first, _advice({p["defense"]: p for p in points}, chosen)


def _advice(points: Mapping[str, Point], chosen: Json) -> str:
    limit = " and ".join(chosen["limits"])
    if chosen["state"] == "nothing learned":
        bare, chance = next(iter(points.values())), chosen["chance"]
        some = bare["accuracy"] > chance and bare["accuracy_high"] > (1 + chance) / 2
        state = "may have learned nothing (too few images score it)" if some else "has learned nothing"
        remedy = "Score it on more images (--validation), or train longer" if some else "Train longer"
        return (
            f"Nothing is recommended: the undefended model {state}. Its balanced accuracy is {_accuracy(bare)}; "
            f"guessing reaches {percent(chance)}. {remedy}, or with other settings."
        )
    if chosen["state"] == "control failed":
        if "out-of-budget" in next(iter(points.values()))["flags"]:
            return (
                f"Nothing is recommended: nothing is decided. Even without a defense, the searches had too "
                f"small a budget to exceed {limit} with 95 % confidence. Let them run longer (--minutes)."
            )
        return (
            f"Nothing is recommended: even without a defense, these attacks do not exceed {limit} with 95 % "
            "confidence, so a defense that meets the limit proves nothing. A failed attack does not mean safety. Try "
            "stronger attacks, more images, or a model that these attacks work on."
        )
    if chosen["state"] == "too few":
        return (
            f"Nothing is recommended: too few updates to show that a setting meets {limit}. Attack "
            f"{chosen['updates_needed']} updates or more (--images {chosen['images_needed']})."
        )
    if chosen["state"] == "none":
        return (
            f"Nothing is recommended: no setting meets {limit} at the upper end of the 95 % interval for all attacks "
            f"together{_left(points, chosen)}."
        )
    best = points[chosen["defense"]]
    bound = f" (epsilon {epsilons(best['epsilon'], ' and ', ' for one {}')})" if best["epsilon"] else ""
    also = " It meets this limit, but the audit's verdict is that it leaks." if best["verdict"] == "leaks" else ""
    also += " Labels still leak; no limit covers them." if best["label_verdict"] == "leaks" else ""
    if "disclosure-unchecked" in best["flags"]:
        also += " Whether the attacks used what they knew of the defense was not checked (disclosure-unchecked)."
    return (
        f"Recommended under {limit}: {label(best['defense'])}{bound}. It costs the least accuracy: {_price(best)} The "
        f"strongest attack still reconstructs {_rate(best, 'asr', chosen)} of the images, with a mean SSIM of "
        f"{_ssim(best, chosen)}, and re-identifies {_rate(best, 'identified', chosen)}.{also}{_beside(chosen)} These "
        "attacks stay within the limit; others may not."
    )


_WHYS = {"inconclusive": "the verdict is inconclusive", "leaking": "its own audit finds a leak (--accept-leak)"}
"""Reasons to leave out a setting that meets the limits."""


def _left(points: Mapping[str, Point], chosen: Json) -> str:
    found = [f"{', '.join(map(label, chosen[key]))} would, but {why}" for key, why in _WHYS.items() if chosen[key]]
    flag = telling(points[spec] for spec in chosen["inconclusive"])
    reason = f" ({REASONS[flag]})" if flag else ""
    return "".join(f"; {text}{reason if 'inconclusive' in text else ''}" for text in found)


def _beside(chosen: Json) -> str:
    """Return sentences on the settings that meet the limits but are left out, beside the recommended one."""
    found = [f" Left out: {', '.join(map(label, chosen[key]))} ({why})." for key, why in _WHYS.items() if chosen[key]]
    return "".join(found)


def _price(best: Point) -> str:
    loss = best["loss"]
    change = "" if loss is None else f", {_points(abs(loss))} {'less' if loss > 0 else 'more'} than without a defense"
    return f"its model has a balanced accuracy of {_accuracy(best)}{change}."


def _points(loss: float | None) -> str:
    return DASH if loss is None else f"{number(100 * loss, '.1f')} points"


def _accuracy(point: Point) -> str:
    if point["accuracy"] is None:
        return DASH
    of = f", over {len(point['accuracies'])} seeds" if point["interval"] == "seeds" else ""
    ends = percents(point["accuracy_low"], point["accuracy_high"])
    return f"{percent(point['accuracy'])} (95 % interval {ends}{of})"


def _bound(chosen: Json, metric: str) -> float | None:
    """Return the limit on a metric, with which its numbers are compared; ``None`` if there is none."""
    limits = dict(one.split("<=") for one in chosen["limits"])
    return float(limits[metric]) if metric in limits else None


def _ends(point: Point, name: str, chosen: Json) -> str:
    return percents(point[f"{name}_low"], point[f"{name}_high"], _bound(chosen, name), above=True)


def _rate(point: Point, name: str, chosen: Json) -> str:
    few = trials(point["images"], point["updates"], point["images_per_update"]) if name == "asr" else ""
    return f"{percent(point[name])} (95 % interval {_ends(point, name, chosen)}{f'; {few}' if few else ''})"


def _ssim(point: Point, chosen: Json, end: str = "") -> str:
    bound = _bound(chosen, "ssim")
    value = point[f"ssim{end}"]
    return number(value) if bound is None else similarity(value, bound, above=True)


def _spread(point: Point, chosen: Json) -> str:
    """Return the mean SSIM's interval, or an en dash if an end is unknown."""
    both = known(point["ssim_low"]) and known(point["ssim_high"])
    return DASH.join(_ssim(point, chosen, end) for end in ("_low", "_high")) if both else DASH


def _values(place: int, point: Point, chosen: Json) -> list[tuple[str, str]]:
    def rate(name: str) -> tuple[str, str]:
        return percent(point[name]), _ends(point, name, chosen)

    marks = ["recommended"] * (point["defense"] == chosen["defense"])
    marks += ["Pareto-optimal in " + ", ".join(point["unbeaten"])] if point["unbeaten"] else []
    return [
        (str(place), ""),
        (label(point["defense"]), ""),
        rate("accuracy") if point["gap"] is None else (DASH, point["gap"]),
        (_points(point["loss"]).removesuffix(" points"), ""),
        rate("asr"),
        (_ssim(point, chosen), _spread(point, chosen)),
        rate("identified"),
        (epsilons(point["epsilon"]), "" if point["epsilon"] is None else f"at delta {point['delta']:g}"),
        (point["verdict"], ", ".join(point["flags"])),
        ("; ".join(marks) or DASH, ""),
    ]


def frontier_table(points: Points, chosen: Json) -> Table:
    """Return the points as a table for a terminal.

    An arrow marks the recommended setting, a star the Pareto-optimal ones for the first limit's metric.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    metric = _asked(chosen)[0]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("No.")
    table.add_column("Setting", overflow="fold")
    for name in _SHORT:
        table.add_column(name, no_wrap=True, justify="right")
    for place, point in enumerate(points):
        cells: dict[str, tuple[str, str]] = dict(zip(COLUMNS, _values(place, point, chosen), strict=True))
        marks = "*" * (metric in point["unbeaten"]) + "\u2192" * (point["defense"] == chosen["defense"])
        numbers = [_number(name, *cells[column]) for name, column in _SHORT.items()]
        named = f"{label(point['defense'])}\n{MARKS[point['verdict']]} {point['verdict'].partition(' by ')[0]}"
        table.add_row(f"{place}\n{marks}", Text(named), *map(Text, numbers))
    return table


_SHORT = {
    "Accuracy": "Accuracy",
    "Lost": "Accuracy lost",
    "ASR": "Reconstructed",
    "SSIM": "SSIM",
    "Re-id.": "Re-identified",
    "Eps.": "Epsilon",
}
_PLAIN = ("Lost", "SSIM")


def _number(name: str, value: str, note: str) -> str:
    if name == "Eps.":  # a line for each unit: the table is as narrow as a terminal
        return value.replace(", ", "\n").replace(" (", "\n(")
    return value if name in _PLAIN else f"{value}\n{note}"


def _asked(chosen: Json) -> list[str]:
    """Return the leakage metrics; those with a limit come first."""
    return list(dict.fromkeys([*(limit.partition("<=")[0] for limit in chosen["limits"]), *_ALWAYS]))


_ALWAYS = ("asr", "ssim", "identified")


def legend(chosen: Json) -> str:
    """Return what the columns and marks of `frontier_table` mean."""
    arrow = "; \u2192: recommended" if chosen["defense"] else ""
    return (
        "Lost: percentage points of balanced accuracy below the undefended model. *: no other setting is at least as "
        f"good in accuracy and {NAMES[_asked(chosen)[0]]}, and better in one of them{arrow}."
    )


def how_to_read(settings: Json) -> list[str]:
    """Return notes on what was attacked, how the numbers compare, and how accuracy was scored."""
    count, number_of = settings["images_per_update"], settings["round"]
    of = "1 image" if count == 1 else f"{count} images"
    batch, larger = settings["batch_size"], ""
    if batch > count:
        larger = (
            f" In the trainings, a gradient averages up to {batch} images: noise of a fixed scale hides one image more "
            "there than here, while DPSGD's noise shrinks with the batch. So this comparison favors DPSGD."
        )
    model = f"the model after round {number_of} of each training" if number_of else "the untrained model (round 0)"
    return [
        f"We attacked updates of {of} each, on {model}. Updates from the training itself were not attacked. They hold "
        "all of a client's images (or --local-images) and usually leak less; test larger updates with "
        f"--images-per-update.{larger}",
        "For each setting, the strongest attack counts, naive or adaptive. The figures compare point estimates. A "
        "limit is met only if the upper end of the 95 % interval for all attacks together is within it.",
        f"Accuracy is balanced accuracy on the {settings['judged']} images after the last round, "
        + (
            f"the mean over {settings['seeds']} seeds with Student's interval."
            if settings["seeds"] > 1
            else "for one training. Its interval covers the choice of images only; another seed may differ by more."
        )
        + " The recommendation is based on the same images.",
    ]


def write_frontier_page(out: Path, settings: Json, points: Points, chosen: Json) -> Path:
    """Write ``frontier.html``, which holds no image and may be shared."""
    from markupsafe import Markup

    from medpfl.reporting.page.advice import of_frontier
    from medpfl.reporting.page.rendering import rendered

    page = rendered(
        "frontier",
        settings,
        advice=of_frontier(points, chosen, model_argument(str((settings.get("experiment") or {}).get("model", "")))),
        sentences=sentences(points, chosen, settings),
        notes=[*how_to_read(settings), *settings["notes"]],
        figures=[(NAMES[metric], Markup(frontier_figure(points, chosen, metric))) for metric in _asked(chosen)],
        columns=COLUMNS,
        rows=[_values(place, point, chosen) for place, point in enumerate(points)],
        bounds=bound_section([point["bound"] for point in points if point["bound"] is not None]),
    )
    return write(out / "frontier.html", page)
