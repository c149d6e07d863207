"""Griffe extension: examples in docstrings become code blocks."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension

__all__ = ["Examples", "fenced"]

_TITLES = "Source|Needs|Applies to|Deviates|Start|Labels|Ends|Noise|Disclosures|Breaks"
_TITLE = re.compile(rf"^({_TITLES}):(?=\s)", re.MULTILINE)
_EXAMPLE = re.compile(r"^(?:>>> .*(?:\n(?!\n).+)*)(?:\n+>>> .*(?:\n(?!\n).+)*)*", re.MULTILINE)
_SHARED = re.compile(r"^    (\w+(?:, \w+)+):((?: .*|$)(?:\n {8}.*)*)", re.MULTILINE)


def fenced(text: str) -> str:
    """Return a docstring as the site shows it.

    Examples stand in fenced blocks, each titled remark is a paragraph, and arguments that share a description get one
    entry each.
    """
    text = _SHARED.sub(lambda found: "\n".join(f"    {name}:{found[2]}" for name in found[1].split(", ")), text)
    return _EXAMPLE.sub(lambda found: f"```pycon\n{found[0]}\n```", _TITLE.sub(r"\n**\1:**", text))


class Examples(Extension):
    """Fences the examples of every docstring that the site shows."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Change one object's docstring, if it has one."""
        if not obj.is_alias and obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)
