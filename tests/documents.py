"""Code in the documents."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


def blocks(page: Path, language: str) -> list[str]:
    """Return a language's fenced code blocks, without the indentation of a surrounding list."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", page.read_text(), re.MULTILINE | re.DOTALL)
    return ["\n".join(line.removeprefix(indent) for line in text.splitlines()) for indent, text in found]


def file_of(text: str) -> str:
    """Return the file name that a code block's first line gives, as in ``# model.py``; ``""`` if it gives none."""
    found = re.match(r"# (\w+\.py)\n", text)
    return found[1] if found else ""


def pasted(name: str, folder: Path, package: ModuleType) -> Path:
    """Write a class from `CONTRIBUTING.md` into a folder, unchanged, and return the file.

    Skips the test if the package already has the class.
    """
    if name in package.__all__:
        pytest.skip("one who followed the page to the letter has it in the package, where the conformance test runs it")
    (text,) = (text for text in blocks(ROOT / "CONTRIBUTING.md", "python") if f"class {name}(" in text)
    place = folder / f"{name.lower()}_of_ones_own.py"
    place.write_text(text + "\n")
    return place


def row(name: str) -> str:
    """Return a class's row in its conformance test, from the table of parts."""
    (text,) = re.findall(rf'`("{name}": .*),` \|$', (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)[:1]
    return text
