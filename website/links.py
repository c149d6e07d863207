"""Links between files of the repository, on the site and on a package index."""

from __future__ import annotations

import re
import tomllib
from os.path import normpath, relpath
from pathlib import Path

__all__ = ["OUTSIDE", "address", "moved"]

ROOT = Path(__file__).resolve().parent.parent


def _outside() -> dict[str, str]:
    """Return the pages of the site that lie outside docs/: name on the site, file in the repository."""
    found = ["CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"]
    pages = (("benchmarks/results", "*.md"), ("examples", "**/README.md"))
    found += [f"{path.relative_to(ROOT)}" for folder, ending in pages for path in sorted((ROOT / folder).glob(ending))]
    notebooks = [f"{path.relative_to(ROOT)}" for path in sorted((ROOT / "examples").glob("*.ipynb"))]
    return {name: name for name in found} | {name.replace(".ipynb", ".md"): name for name in notebooks}


OUTSIDE = _outside()
_PLACES = {source: name for name, source in OUTSIDE.items()}
_FENCE = re.compile(r"^ *(```|~~~)")
_LINK = re.compile(r"(!?\[[^\]]*\]\()((?!https?:|mailto:|#)[^)\s#]+)(#[^)\s]*)?\)")


def address() -> str:
    """Return the repository's address, which pyproject.toml states once for all absolute links."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"].rstrip("/")


def moved(markdown: str, name: str) -> str:
    """Return a page with its links to files of the repository changed to links between pages of the site.

    Files that are no page of the site are linked at the repository's address.

    Args:
        markdown: the page's text.
        name: its name on the site, such as ``"tutorials/images.md"``.
    """
    here = Path(OUTSIDE.get(name, f"docs/{name}")).parent

    def replaced(found: re.Match[str]) -> str:
        target = _place(normpath(here / found[2]), Path(name).parent)
        return f"{found[1]}{target or found[2]}{found[3] or ''})"

    lines, fenced = [], False
    for line in markdown.split("\n"):
        if _FENCE.match(line):
            fenced = not fenced
        lines.append(line if fenced else _LINK.sub(replaced, line))
    return "\n".join(lines)


def _place(source: str, start: Path) -> str:
    """Return the place of a repository's file, relative to a folder of the site; ``""`` if there is no such file."""
    path = ROOT / source
    if path.is_dir() and (path / "README.md").exists():
        source, path = f"{source}/README.md", path / "README.md"
    if source in _PLACES:
        return relpath(_PLACES[source], start)
    if source.startswith("docs/"):
        return relpath(source.removeprefix("docs/"), start)
    return f"{address()}/blob/main/{source}" if path.exists() else ""
