"""Matplotlib figures as inline SVG that uses the page's fonts and its light and dark colors."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLORS", "inline"]

# Placeholders for the page's own colors (CSS custom properties), replaced when the SVG is written.
COLORS = {
    name: f"#0{i}0{i}0{i}" for i, name in enumerate(["ink", "muted", "line", "leak", "safe", "doubt", "paper"], start=1)
}
SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "medpfl", "font.size": 9.5, "axes.linewidth": 0.8}


def inline(figure: Figure, name: str, title: str, tips: Mapping[str, str] | None = None) -> str:
    """Return the figure as an ``<svg>`` element for an HTML page; equal figures give equal bytes.

    Args:
        figure: figure drawn in `COLORS`.
        name: prefix for every id, so that no two figures on a page share one.
        title: description for readers who cannot see the figure.
        tips: texts shown on hover and on focus, by the ``gid`` of an artist.
    """
    import matplotlib.style

    buffer = io.StringIO()
    with matplotlib.style.context(["default", SETTINGS]):
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(["Date", "Creator"]))
    text = buffer.getvalue()
    body = text[text.index(">", text.index("<svg")) + 1 :]
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)[0]
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-labelledby="{name}-title">'
    return f'{head}<title id="{name}-title">{escape(title)}</title>{_told(_clean(body, name), name, tips or {})}'


def _told(body: str, name: str, tips: Mapping[str, str]) -> str:
    """Return the body with the tips: as titles, which any browser shows on hover, and for the page's script."""
    for gid, text in tips.items():
        start, told = f'<g id="{name}-{gid}">', escape(text)
        assert start in body, gid
        marked = f'<g id="{name}-{gid}" class="mark" data-tip="{told}"><title>{told}</title>'
        body = body.replace(start, marked, 1)
    return body


def _clean(body: str, name: str) -> str:
    # The style element would apply to the whole page, not only to this figure.
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    # Only ids inside tags: a label's text may look like an id.
    body = re.sub(r'(<\w+ id=")', rf"\g<1>{name}-", body)
    body = re.sub(r'(<\w+ )(?:xlink:)?(href="#)', rf"\g<1>\g<2>{name}-", body)
    body = body.replace('="url(#', f'="url(#{name}-')
    # Drop only the font family, so that text takes the page's font. Older Matplotlib versions write the shorthand.
    body = re.sub(r'font: (bold )?([\d.]+px) [^;"]+', r"font-size: \g<2>", body)
    body = re.sub(r' font-family: [^;"]+;', "", body)
    for color, code in COLORS.items():
        body = body.replace(f": {code}", f": var(--{color})")
    return re.sub(r"\s*\n\s*", "\n", body).strip()
