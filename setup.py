"""The package's description on an index: README.md, with links that lead to the repository.

All other metadata is in pyproject.toml, and so is the repository's address, the only one that a new host changes.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
_LINK = re.compile(r"(!?)(\[[^\]]*\]\()(?!https?:|mailto:|#)([^)\s]+)\)")


def absolute(markdown: str, address: str) -> str:
    """Return a page of the repository's root with absolute links: pictures to raw files, all else to their pages."""
    return _LINK.sub(lambda found: f"{found[1]}{found[2]}{address}/{_KINDS[found[1]]}/main/{found[3]})", markdown)


_KINDS = {"!": "raw", "": "blob"}


def description() -> str:
    """Return the text for the package's page on an index."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return absolute((ROOT / "README.md").read_text(encoding="utf-8"), project["urls"]["Repository"].rstrip("/"))


if __name__ == "__main__":
    setup(long_description=description(), long_description_content_type="text/markdown")
