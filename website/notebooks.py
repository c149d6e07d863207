"""Notebooks as Markdown pages."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["page_of"]


def page_of(notebook: Path) -> str:
    """Return a notebook's cells as Markdown, its code in fenced blocks. Outputs are left out."""
    parts = []
    for cell in json.loads(notebook.read_text())["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(parts) + f"\n\nThe notebook: [{notebook.name}]({notebook.name})\n"
