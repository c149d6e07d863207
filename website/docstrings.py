"""Griffe extension: examples in docstrings become code blocks."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension

__all__ = ["Examples", "fenced"]

_TITLES = "Source|Needs|Applies to|Deviates|Start|Labels|Ends|Noise|Disclosures|Breaks"
_TITLE = re.compile(rf"^({_TITLES}):(?=\s)", re.MULTILINE)
_EXAMPLE = re.compile(r"^(?:>>> .*(?:\n(?!\n).+)*)(?:\n+>>> .*(?:\n(?!\n).+)*)*", re.MULTILINE)


def fenced(text: str) -> str:
    """Return a docstring with its unindented examples in fenced blocks, and a paragraph for each titled remark."""
    return _EXAMPLE.sub(lambda found: f"```pycon\n{found[0]}\n```", _TITLE.sub(r"\n**\1:**", text))


class Examples(Extension):
    """Fences the examples of every docstring that the site shows."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Change one object's docstring, if it has one."""
        if not obj.is_alias and obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)
