"""The pages of ``medpfl check-model``, for the terminal and in HTML: findings as headings and lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from medpfl.core.atomic_files import write
from medpfl.core.experiments.settings import Json
from medpfl.reporting.page.advice import of_model
from medpfl.reporting.page.rendering import rendered
from medpfl.reporting.words import model_words, percent

__all__ = ["model_page", "write_model_page"]

_NAMED = 3
_LINEAR = 6
_READ = {
    "exactly": "the layer's input, exactly (a row of its gradient over that of the bias)",
    "up to a factor": "the layer's input up to a factor (there is no bias)",
    "as a sum": "a weighted sum of several inputs",
    "not": "nothing by itself: no row gets its gradient from one input alone",
}


def model_page(check: Json) -> list[tuple[str, list[str]]]:
    """Return the page's headings, each with its lines.

    Args:
        check: the fields of a `medpfl.inspection.check.ModelCheck`.
    """
    return [
        (
            f"{model_words(check['model'])} on images {_shape(check['image_shape'])}, {check['mode']} mode",
            list(_facts(check)),
        ),
        ("What its updates reveal without any search", list(_leaks(check))),
        ("Attacks", list(_attacks(check))),
        ("Images of a batch that Separation can tell apart and read, by count", list(_capacity(check["capacity"]))),
        ("Derivatives", list(_derivatives(check["derivatives"]))),
        ("Time", list(_time(check["seconds"], check["facts"], check["fewest"]))),
    ]


def write_model_page(path: Path, check: Json) -> None:
    """Write the page as HTML; it shows no image.

    Args:
        path: the file.
        check: as for `model_page`.
    """
    (facts, details), leaks, *others = model_page(check)
    sections = [leaks, (facts, details), *others]
    tables = {}
    for place, (heading, lines) in enumerate(sections):
        columns = _columns(check["capacity"]) if "by count" in heading else []
        if columns:
            body = [[(cell, "") for cell in row] for row in zip(*(column[1:] for column in columns), strict=True)]
            tables[heading] = ([column[0] for column in columns], body)
            sections[place] = (heading, lines[len(body) + 1 :])
    write(path, rendered("model", {}, advice=of_model(check), sections=sections, tables=tables))


def _shape(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides))


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _facts(check: Json) -> Iterator[str]:
    facts = check["facts"]
    yield f"{facts['parameters']:,} parameters, {facts['trained']:,} of them trained; {check['outputs']} outputs"
    if check["fewest"] > 1:
        yield "cannot take a single image: batch norm in train mode would get one value per channel (try --mode eval)"
    if facts["frozen"]:
        yield f"frozen, so not in an update: {_names(facts['frozen'])}"
    if facts["without_gradient"]:
        yield f"without a gradient, so zero in every update: {_names(facts['without_gradient'])}"
    for same in facts["tied"]:
        yield f"one tensor under several names, sent once: {_names(same)}"
    if facts["returns"] > 1:
        yield f"returns {facts['returns']} outputs; only one counts: the one named 'logits' or 'out', else the first"
    if facts["layers"] or facts["attention"]:
        layers = [f"{count} {kind}" for kind, count in facts["layers"].items()]
        calls = [f"{facts['attention']} x attention (math kernel)"] if facts["attention"] else []
        yield "layers that matter: " + ", ".join(layers + calls)
    if facts["layers"].get("dropout") and check["mode"] == "train":
        yield "only the client knows its dropout masks; --grant masks gives them to the attacker"


def _leaks(check: Json) -> Iterator[str]:
    for images, told in check["labels"].items():
        yield f"labels, {_count(images)}: " + _labels(told)
    shown = sorted(check["linear"], key=lambda layer: (layer["read"] == "as a sum", -layer["inputs"]))
    for layer in shown[:_LINEAR]:
        what = "the image itself: " if layer["pixels_themselves"] and layer["read"] != "not" else ""
        sizes = f"{layer['inputs']:,} inputs for {layer['pixels']:,} pixels"
        yield f"'{layer['layer']}', {_count(check['fewest'])}: {what}{_READ[layer['read']]}; {sizes}"
    if len(shown) > _LINEAR:
        yield f"and {len(shown) - _LINEAR} more linear layers (--json lists all)"
    if any(layer["read"] in ("exactly", "up to a factor") for layer in shown):
        yield "from a batch: a mixture of its inputs, except where a single image drives a row"
    yield _statistics(check["statistics"], check["mode"])


def _count(images: int | str) -> str:
    return "one image" if str(images) == "1" else f"batches of {images}"


def _labels(told: Json) -> str:
    if "why" in told:
        return told["why"]
    by = "bias" if told["bias"] else "weight (there is no bias)"
    layer = told["layer"].rpartition(".")[0] or told["layer"]
    return f"{told['right']} of {told['all']} inferred from the gradient of the last layer's {by}, '{layer}'"


def _statistics(told: Json, mode: str) -> str:
    if not told["layers"]:
        return "no batch-norm statistics: the model has none"
    if not told["sent"]:
        return f"no batch-norm statistics: they do not change in {mode} mode"
    return (
        f"means and variances of the batch's features in {told['layers']} batch norms ({told['numbers']:,} values), "
        "if buffers are sent (the default in most frameworks; see --sends)"
    )


def _attacks(check: Json) -> Iterator[str]:
    applies = [name for name, why in check["attacks"].items() if not why]
    if applies:
        yield "apply: " + ", ".join(applies)
    reasons: dict[str, list[str]] = {}
    for name, why in check["attacks"].items():
        if why:
            reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        yield f"do not apply: {', '.join(names)}: {why}"


def _capacity(counted: Mapping[str, Json]) -> Iterator[str]:
    """Yield a table with one row per batch size, and for each mode the reasons why no more can be read."""
    separating = _separating(counted)
    yield from _table(_columns(counted))
    if separating:
        most = max(one["most"] for found in separating.values() for one in found["batches"])
        yield f"Separates at most {most} images. 'Read down to' names the earliest layer whose inputs it reads."
        yield "From shapes alone: noise, or too few zeros among the inputs, may stop the attack earlier."
    ends = {mode: tuple(_ends(found)) for mode, found in counted.items()}
    if len(set(ends.values())) == 1:
        ends = {" and ".join(ends): next(iter(ends.values()))}
    yield from (f"{modes}, {line}" for modes, lines in ends.items() for line in lines)


def _separating(counted: Mapping[str, Json]) -> dict[str, Json]:
    return {mode: found for mode, found in counted.items() if any(one["reads"] for one in found["batches"])}


def _columns(counted: Mapping[str, Json]) -> list[list[str]]:
    """Return the table's columns, each with its heading first; none if no mode separates images."""
    columns: list[list[str]] = []
    for mode, found in _separating(counted).items():
        batches = found["batches"]
        columns = columns or [["batch", *(str(one["images"]) for one in batches)]]
        columns.append([f"{mode}: separates at", *(one["separates"] or "-" for one in batches)])
        columns.append(["read down to", *(_read(one) for one in batches)])
    return columns


def _read(one: Json) -> str:
    return "-" if not one["reads"] else one["reads"] if one["stops"] else "the images"


def _table(columns: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in columns]
    for first, *rest in zip(*columns, strict=True):
        cells = [cell.ljust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        yield "  ".join([first.rjust(widths[0]), *cells]).rstrip()


def _ends(found: Json) -> Iterator[str]:
    """Yield the reasons why no more can be read in a mode, each once, with the batch sizes."""
    if found["why"]:
        yield f"all batches: {found['why']}"
    groups: dict[tuple[str, str], list[Json]] = {}
    for one in found["batches"]:
        counts = one["stops"] and one["limited"] == "count"
        groups.setdefault((one["stops"], "" if counts else one["why"]), []).append(one)
    for (stops, why), same in groups.items():
        first, everywhere = same[0], len(same) == len(found["batches"])
        sizes = "all batches" if everywhere else _sizes([one["images"] for one in same])
        if stops:
            few = f"too few equations ({_count(first['images'])}: {first['why']})"
            yield f"{sizes}: stops at {stops}: {why or few}"
        elif why:
            yield f"{sizes}: no image is separated: {why}"


def _sizes(images: Sequence[int]) -> str:
    *others, last = map(str, images)
    return f"batches of {', '.join(others)} and {last}" if others else _count(last)


def _derivatives(found: Mapping[str, str]) -> Iterator[str]:
    yield "second derivative, by the image (double backward): " + (f"no: {found['twice']}" if found["twice"] else "yes")
    if not found["twice"]:
        yield "for several victims at once (vmap): " + (f"no: {found['together']}" if found["together"] else "yes")
    if found["wrong"]:
        yield f"wrong: {found['wrong']} has a second derivative that does not match what it computes"


def _time(seconds: Json, facts: Json, fewest: int) -> Iterator[str]:
    line = f"{_count(fewest)}: {_ms(seconds['forward'])} forward, {_ms(seconds['gradient'])} for an update"
    if seconds["second"] is None:
        yield line
    else:
        ratio = seconds["second"] / seconds["gradient"]
        yield f"{line}, {_ms(seconds['second'])} for its derivative by the image ({ratio:.1f} times an update)"
    if seconds["together"] is not None:
        gain = seconds["second"] / seconds["together"]
        small = "audits attack them together, because the model is small"
        does = small if seconds["audits_together"] else "audits attack one at a time, because the model is large"
        yield f"four victims together: {gain:.1f} times as fast as one after the other; {does}"
    if facts["slowest"]:
        kind, share = facts["slowest"]
        yield f"slowest: {kind}, {percent(share)} of a forward pass"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
