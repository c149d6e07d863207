"""The frame of every page: one file, no request, and a policy under which only the page's own script runs."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from medpfl.core.experiments.settings import Json
from medpfl.reporting.facts import facts
from medpfl.reporting.page.maker import maker
from medpfl.reporting.verdict import MARKS
from medpfl.reporting.words import DASH, label

if TYPE_CHECKING:
    import jinja2

__all__ = ["environment", "rendered"]


def rendered(name: str, settings: Json, **values: object) -> bytes:
    """Render a page from its template, with the style, script, maker, facts and version that all pages share.

    Args:
        name: the template's name without its suffix.
        settings: settings as JSON.
        values: the template's own values.

    Returns:
        The page. Equal arguments give equal bytes.
    """
    version = (settings.get("versions") or {}).get("medpfl", "")
    template = environment().get_template(f"{name}.html.jinja")
    mark = secrets.token_hex(16)  # content cannot contain it, so it stands only where the template puts the nonce
    page = template.render(
        css=_own("report.css"),
        script=_own("page.js"),
        nonce=mark,
        title=(settings.get("about") or {}).get("title", ""),
        maker=maker(settings),
        facts=facts(settings),
        version=version,
        marks=MARKS,
        **values,
    )
    return page.replace(mark, _nonce(page.replace(mark, ""))).encode()


def _nonce(page: str) -> str:
    """Return a nonce that no content can foresee, because it is a digest of the whole page."""
    return base64.urlsafe_b64encode(hashlib.sha256(page.encode()).digest())[:24].decode()


@cache
def _own(name: str) -> Markup:
    return Markup(files("medpfl.reporting").joinpath(name).read_text("utf-8"))


@cache
def environment() -> jinja2.Environment:
    """Return the template environment, with filters for specs and sentences."""
    import jinja2  # here, since most commands render no page

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("medpfl.reporting", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(spec=_spec, prose=_prose, slug=_slug, label=label)
    return environment


def _spec(spec: str) -> Markup:
    """Format a spec as code that may break after a bracket, comma, bar or equals sign."""
    text = re.sub(r"([(,|=])", r"\1<wbr>", str(escape(label(spec))))
    return Markup(f"<code>{text}</code>" if label(spec) == spec.replace("()", "") else text)


def _prose(text: str) -> Markup:
    """Keep numbers and intervals on one line; let specs break after a bracket or an equals sign."""
    kept = str(escape(text)).replace(" %", "\u00a0%")
    kept = re.sub(rf"(?<=\d){DASH}(?=\d)", f"\u2060{DASH}\u2060", kept)
    return Markup(re.sub(r"(?<=\w[(=])(?=[^\s\u2026])", "<wbr>", kept))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z]+", "-", text.lower()).strip("-")
