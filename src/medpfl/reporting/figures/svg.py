"""Matplotlib figures as SVG that lives inside a page: its fonts, its colors in light and dark, its names."""

from __future__ import annotations

import io
import re
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLORS", "inline"]

# Colors that stand for the page's own (its custom properties) until the SVG is written.
COLORS = {
    name: f"#0{i}0{i}0{i}" for i, name in enumerate(["ink", "muted", "line", "leak", "safe", "doubt", "paper"], start=1)
}
SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "medpfl", "font.size": 9.5, "axes.linewidth": 0.8}


def inline(figure: Figure, name: str, title: str) -> str:
    """The figure as an ``<svg>`` element for an HTML page, equal bytes for equal figures.

    Args:
        figure: drawn in `COLORS`.
        name: prefix of every id, so that two figures of a page do not share one.
        title: what the figure shows, for those who do not see it.
    """
    import matplotlib.style

    buffer = io.StringIO()
    with matplotlib.style.context(["default", SETTINGS]):
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(["Date", "Creator"]))
    text = buffer.getvalue()
    body = text[text.index(">", text.index("<svg")) + 1 :]
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)[0]
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-labelledby="{name}-title">'
    return f'{head}<title id="{name}-title">{escape(title)}</title>{_clean(body, name)}'


def _clean(body: str, name: str) -> str:
    # The style element would rule the whole page, not only this figure.
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    # Only names in tags: the text of a label may look like one.
    body = re.sub(r'(<\w+ id=")', rf"\g<1>{name}-", body)
    body = re.sub(r'(<\w+ )(?:xlink:)?(href="#)', rf"\g<1>\g<2>{name}-", body)
    body = body.replace('="url(#', f'="url(#{name}-')
    # The family alone goes, so that text is set in the page's own font. Older versions write the shorthand.
    body = re.sub(r'font: (bold )?([\d.]+px) [^;"]+', r"font-size: \g<2>", body)
    body = re.sub(r' font-family: [^;"]+;', "", body)
    for color, code in COLORS.items():
        body = body.replace(f": {code}", f": var(--{color})")
    return re.sub(r"\s*\n\s*", "\n", body).strip()
