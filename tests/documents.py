"""The code that documents show."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code of a language, without the indentation of a list that it stands in."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", page.read_text(), re.MULTILINE | re.DOTALL)
    return ["\n".join(line.removeprefix(indent) for line in text.splitlines()) for indent, text in found]


def pasted(name: str, folder: Path, package: ModuleType) -> Path:
    """The file with a class that `CONTRIBUTING.md` shows, put into a folder as it stands.

    Skips the test if the class is in the package already.
    """
    if name in package.__all__:
        pytest.skip("one who followed the page to the letter has it in the package, where the conformance test runs it")
    (text,) = (text for text in blocks(ROOT / "CONTRIBUTING.md", "python") if f"class {name}(" in text)
    place = folder / f"{name.lower()}_of_ones_own.py"
    place.write_text(text + "\n")
    return place


def row(name: str) -> str:
    """The row of a conformance test that its table of parts shows for a class."""
    (text,) = re.findall(rf'`("{name}": .*),` \|$', (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)[:1]
    return text
