"""The lines on who made a page: title, site, contact, data set, date and version."""

from __future__ import annotations

from medpfl.core.experiments.settings import Json
from medpfl.core.messages import counted
from medpfl.reporting.words import model_words, several

__all__ = ["maker"]

_NOT_STATED = "not stated"
_NOBODY = "not stated: add --contact, so that readers know whom to ask"


def maker(settings: Json) -> list[tuple[str, str]]:
    """Return names with texts for the page's lines on its maker; a title comes first, if there is one.

    Args:
        settings: settings as JSON; ``about`` holds what the maker stated, see `medpfl.core.experiments.groups.About`.
    """
    about, data = settings.get("about") or {}, settings.get("data") or {}
    experiment, version = settings.get("experiment") or {}, (settings.get("versions") or {}).get("medpfl", "")
    images = counted(data["images"], "image") if isinstance(data.get("images"), int) else ""
    if images and isinstance(asked := experiment.get("images"), int) and asked < data["images"]:
        images = f"{asked} of {images} attacked"
    source = about.get("alias") or data.get("source") or experiment.get("data")  # a frontier's data are a training's
    found = {
        "Site": about.get("site") or _NOT_STATED,
        "Contact": about.get("contact") or _NOBODY,
        "Data": ", ".join(filter(None, [source, images])) or _NOT_STATED,
        "Model": "; ".join(map(model_words, several(experiment.get("model")))) or _NOT_STATED,
        "Date": str(settings.get("started") or _NOT_STATED).partition("T")[0],
        "Made with": f"MedPFL {version}".strip(),
    }
    return [*([("Title", about["title"])] if about.get("title") else []), *found.items()]
