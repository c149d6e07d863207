"""A frontier's results and files: points, recommendation, table, page, and a configuration for ``medpfl train``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from medpfl.auditing.report import Report
from medpfl.core.atomic_files import PRIVATE, as_csv, write
from medpfl.core.errors import InputError
from medpfl.core.experiments.frontier import RECOMMENDED, RECOMMENDED_FILE, Frontier
from medpfl.core.experiments.groups import About
from medpfl.core.messages import PRIVATE_FOLDER, SHARE_FOLDER
from medpfl.core.user_code.stated import check_stated
from medpfl.judging.types import flat
from medpfl.reporting.frontier import sentences, write_frontier_page
from medpfl.reporting.training import judging_set
from medpfl.runs.directory import Kind, private_folder, share_folder
from medpfl.tradeoff.choice import marked, recommendation
from medpfl.tradeoff.limits import limits_of
from medpfl.tradeoff.points import Point, points_of
from medpfl.tradeoff.tasks import Setting, training_of
from medpfl.training.report import Trained

if TYPE_CHECKING:
    from medpfl.reporting.figures.plots import Plot

__all__ = ["FRONTIER", "Found", "FrontierResult", "results", "write_recommended"]

_YAML = RECOMMENDED_FILE
_PLACES = ("data", "validation", "test", "weights", "device")
_RUN = ("out", "force", *(one.name for one in fields(About)))
"""Options that belong on the command line, not in a file."""
_SHARED = ("frontier.json", "frontier.csv", "frontier.html", "frontier.pdf", _YAML)
FRONTIER = Kind("frontier", 2, _SHARED, rows=False)
"""Since format 2, files that may be shared have their own folder."""


class Found(NamedTuple):
    """The outputs of a frontier's runs.

    Attributes:
        known: the content of the frontier's ``run.json``.
        settings: the settings, in order.
        audits: audit of each setting; missing if there was no model to audit.
        trainings: trainings of each setting, one per seed; missing if one diverged.
    """

    known: dict[str, Any]
    settings: Sequence[Setting]
    audits: Mapping[str, Report]
    trainings: Mapping[str, Sequence[Trained]]


@dataclass(frozen=True, eq=False)
class FrontierResult:
    """The result of a frontier.

    Attributes:
        points: one point per setting, see `medpfl.tradeoff.points.points_of` and `medpfl.tradeoff.choice.marked`.
        recommendation: the recommended setting, see `medpfl.tradeoff.choice.recommendation`.
        settings: settings of the trainings and audits, as the page prints them.
        pages: the pages written.
    """

    points: list[Point]
    recommendation: dict[str, Any]
    settings: dict[str, Any]
    pages: tuple[Path, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return points, recommendation and settings as JSON data."""
        points = [{**p, "bound": p["bound"] and flat(p["bound"].bound)} for p in self.points]
        return {"points": points, "recommendation": self.recommendation, "settings": self.settings}

    def plot(self, measure: Literal["asr", "identified", "ssim"] = "asr") -> Plot:
        """Draw leakage against balanced accuracy; return a matplotlib figure and its axes.

        Args:
            measure: the strongest attack's success rate, re-identification, or mean SSIM.
        """
        from medpfl.reporting.figures.plots import plot_points

        return plot_points(self.points, self.recommendation["defense"], measure)

    def __str__(self) -> str:
        return "\n".join(sentences(self.points, self.recommendation, self.settings))


def results(out: Path, found: Found) -> FrontierResult:
    """Compute the points and the recommendation from the runs' rows, and write their files."""
    first = found.trainings[found.settings[0].spec][0]
    limits, name = limits_of(found.known["limits"]), judging_set(first.rows)
    cells = {s.spec: found.audits[s.spec].summary if s.spec in found.audits else [] for s in found.settings}
    rounds = {s.spec: [one.rows for one in found.trainings.get(s.spec, ())] for s in found.settings}
    points = marked(points_of(cells, rounds, name), limits)
    settings = _settings(found, name)
    chosen = recommendation(points, limits, _classes(found), found.known.get("accept_leak", False))
    result = FrontierResult(points, chosen, settings)
    folder = share_folder(out, FRONTIER)
    write(folder / "frontier.json", json.dumps(result.to_dict(), indent=1).encode())
    write(folder / "frontier.csv", as_csv([name for name in points[0] if name != "bound"], points).encode())
    page = write_frontier_page(folder, result.settings, points, result.recommendation)
    return FrontierResult(points, result.recommendation, result.settings, (page, *_private_pages(found)))


def _private_pages(found: Found) -> list[Path]:
    """Return the pages with images from the frontier's audits."""
    pages = dict.fromkeys(page for report in found.audits.values() for page in report.pages)
    return [page for page in pages if page.suffix == ".html" and page.parent.name == PRIVATE_FOLDER]


def _classes(found: Found) -> int:
    return len(next(iter(found.audits.values())).settings.data["classes"])


def _settings(found: Found, name: str) -> dict[str, Any]:
    """Return the settings for the page, without paths and without names of images, patients or classes."""
    audit = next(iter(found.audits.values())).settings.to_dict()
    trainings = [own[0].settings for own in found.trainings.values()]
    training = trainings[0]
    notes = dict.fromkeys(note for one in (audit, *trainings) for note in one.get("notes", ()))
    identity, experiment = found.known["identity"], dict(audit["experiment"])
    kept = {k: v for k, v in training["experiment"].items() if k not in ("defense", "data", "model", "weights")}
    return {
        "experiment": {
            **{k: experiment[k] for k in ("data", "model", "attacks", "images", "images_per_update", "draws")},
            "plan that is attacked": experiment["plan"],
            "weights that are attacked": f"of round {identity['round']}"
            if identity["round"]
            else experiment["weights"],
            **{f"training: {key}": value for key, value in kept.items()},
            "training: seeds": identity["seeds"],
        },
        "data": training["data"],
        **{key: audit[key] for key in ("grants", "model", "versions", "device", "seed", "started")},
        "about": audit.get("about", {}),
        # A frontier judges a defense by the strongest attack, and has no --naive.
        "notes": [note for note in notes if "--naive" not in note],
        "judged": name,
        "round": identity["round"],
        "images_per_update": identity["images_per_update"],
        "batch_size": identity["batch_size"],
        "seeds": identity["seeds"],
    }


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _is_ours(spec: str) -> bool:
    """Return True if a spec names only parts of MedPFL, so that a shared file may contain it."""
    with suppress(InputError):
        check_stated(spec, "part", _YAML, "")
        return True
    return False


def write_recommended(out: Path, experiment: Frontier, settings: Sequence[Setting], result: FrontierResult) -> None:
    """Write the recommended training for ``medpfl train DATA --config``, and remove an earlier recommendation.

    The file names no images, weights file or device; they belong on the command line. It may be shared unless the
    model or the defense is given by a path. In that case it goes into ``private``, readable only by its owner (mode
    0600), and whoever uses it must name that path again, because a recommendation may come from another party
    (`medpfl.cli.config_files.check_files`).
    """
    import yaml

    for folder in (SHARE_FOLDER, PRIVATE_FOLDER):
        (out / folder / _YAML).unlink(missing_ok=True)
    chosen = [setting for setting in settings if setting.spec == result.recommendation["defense"]]
    if chosen:
        options = training_of(experiment, chosen[0], experiment.run.seed, None).options()
        given = [name for name in _PLACES[1:] if options[name] not in (None, "cpu")]
        training = {name: value for name, value in options.items() if name not in (*_PLACES, *_RUN)}
        reasons = "".join(f"# {line}\n" for text in str(result).split("\n") for line in wrap(text, 100))
        own = [name for name in ("model", "defense") if not all(map(_is_ours, _listed(training[name])))]
        named = "".join(f" --{name} ..." for name in [*own, *given])
        head = (
            f"{RECOMMENDED} under {', '.join(result.recommendation['limits'])}.\n{reasons}"
            f"# To use it, add your images: medpfl train DATA{named} --config {_YAML}\n"
        )
        content = (head + yaml.safe_dump(training, sort_keys=False)).encode()
        if own:
            write(private_folder(out) / _YAML, content, PRIVATE)
        else:
            write(share_folder(out, FRONTIER) / _YAML, content)
