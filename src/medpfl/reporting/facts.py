"""A run's settings as titled lists. Missing settings are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from medpfl.core.experiments.settings import Json
from medpfl.core.threat import GRANTS
from medpfl.reporting.words import DASH, model_words, number, several

__all__ = ["Facts", "facts", "granted", "lead", "sent_beside"]

RUN = {"device": "device", "engine": "engine", "seed": "seed", "started": "started"}
TITLES = {
    "experiment": "Experiment",
    "data": "Data",
    "model": "Model",
    "record": "Recorded update",
    "privacy": "Differential privacy",
    "isolation": "Isolation of attacks",
}


class Facts(NamedTuple):
    """A title, and the lines under each name."""

    title: str
    items: list[tuple[str, list[str]]]


def facts(settings: Json) -> list[Facts]:
    """Return the lists for experiment, data, model, record, privacy, isolation, run and versions."""
    groups = {title: settings.get(key) for key, title in TITLES.items()}
    groups["Run"] = {name: settings[key] for key, name in RUN.items() if key in settings}
    groups["Versions"] = settings.get("versions")
    return [Facts(title, _items(group)) for title, group in groups.items() if group]


def _items(group: Json) -> list[tuple[str, list[str]]]:
    return [(str(name).replace("_", " "), _lines(name, value)) for name, value in group.items()]


def _lines(name: str, value: object) -> list[str]:
    if name == "shape" and isinstance(value, list | tuple):
        return [" \u00d7 ".join(map(str, value))]
    if isinstance(value, Mapping):
        return [f"{key}: {_text(key, one)}" for key, one in value.items()] or [DASH]
    if isinstance(value, list | tuple):
        return [_text(name, one) for one in value] or ["none"]
    return [_text(name, value)]


def _text(name: str, value: object) -> str:
    if value is None or value == "":
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value, "g")
    if name == "model":
        return model_words(str(value))
    return f"{value:,}" if isinstance(value, int) and name != "seed" else str(value)


def granted(grants: Sequence[str]) -> list[tuple[str, str]]:
    """Return each grant with its meaning."""
    return [(grant, GRANTS.get(grant, "this version has no explanation")) for grant in grants]


def sent_beside(settings: Json) -> str:
    """Return a sentence on what clients sent besides the update; ``""`` if the settings do not say it.

    >>> sent_beside({"experiment": {"sends": ["num_samples"], "plan": "Plan()"}, "model": {"batch_norm_layers": 2}})
    'Clients also sent the number of images, but no batch-norm statistics.'
    """
    experiment, layers = settings.get("experiment") or {}, (settings.get("model") or {}).get("batch_norm_layers")
    if "sends" not in experiment or layers is None:
        return ""
    number = "the number of images" if "num_samples" in experiment["sends"] else "nothing else"
    if not layers:
        return f"Clients also sent {number}. The model has no batch-norm statistics."
    if "buffers" not in experiment["sends"]:
        return f"Clients also sent {number}, but no batch-norm statistics."
    still = " (unchanged, in eval mode)" if "mode='eval'" in str(experiment.get("plan")) else ""
    both = f"{number} and " if "num_samples" in experiment["sends"] else ""
    return f"Clients also sent {both}the batch-norm statistics{still}."


def lead(settings: Json) -> str:
    """Return the line under the title: model, data, number of images, start time."""
    experiment, data = settings.get("experiment") or {}, settings.get("data") or {}
    images = f"{data['images']:,} images" if isinstance(data.get("images"), int) else None
    model = "; ".join(map(model_words, several(experiment.get("model"))))
    parts = [model, data.get("source"), images, settings.get("started")]
    return " \u00b7 ".join(str(part) for part in parts if part)
