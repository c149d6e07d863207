"""MkDocs hooks: pages from outside docs/, reference pages made from the code, formulas as MathML, and an offline check.

MkDocs runs this file by its path, so the repository's root is put on the module path first.
"""

from __future__ import annotations

import re
import sys
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
for place in (ROOT, ROOT / "src"):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))

from website.charts import charts  # noqa: E402
from website.links import OUTSIDE, moved  # noqa: E402
from website.notebooks import page_of  # noqa: E402
from website.reference import pages  # noqa: E402

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
_RESOURCE = re.compile(r'<(?:link|script|img|iframe|source|use)\b[^>]*?(?:href|src|srcset)="(?:https?:)?//[^"]*"')
_PLAIN_LINK = re.compile(r'<link\b[^>]*rel="canonical"')


def on_files(files: Any, *, config: Any) -> Any:
    """Add the pages from outside docs/, the reference pages, and the charts."""
    made = {name: (ROOT / source).read_text() for name, source in OUTSIDE.items() if not source.endswith(".ipynb")}
    made |= {name: page_of(ROOT / source) for name, source in OUTSIDE.items() if source.endswith(".ipynb")}
    made |= pages()
    made |= {f"pictures/{name}": drawing for name, drawing in charts().items()}
    for name, content in made.items():
        if stored := files.get_file_from_path(name):
            files.remove(stored)
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Let links between files of the repository lead to the site's pages."""
    return moved(markdown, page.file.src_uri)


def on_page_content(html: str, **_: Any) -> str:
    """Replace each formula by MathML, which browsers draw without a script."""
    return _FORMULA.sub(_mathml, html)


def _mathml(found: re.Match[str]) -> str:
    display = "block" if found[2] == "[" else "inline"
    made = convert(unescape(found[3]).strip(), display=display)
    if "\\" in re.sub(r"<annotation.*?</annotation>", "", made, flags=re.DOTALL):
        raise PluginError(f"a formula has a command that MathML lacks: {found[3]}")
    return made


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """Raise `PluginError` if a page loads anything from another host."""
    for found in _RESOURCE.finditer(output):
        if not _PLAIN_LINK.match(found[0]):
            raise PluginError(f"{page.file.src_uri} loads from another host: {found[0]}")
    return output
