"""Apply a unified diff to a text, for the examples that add a line to a plain app."""


def patched(text: str, diff: str) -> str:
    """Return a text with a diff applied. Each hunk's old lines must occur exactly once."""
    for hunk in diff.split("\n@@ ")[1:]:
        lines = hunk.rstrip("\n").split("\n")[1:]
        old = "\n".join(line[1:] for line in lines if not line.startswith("+"))
        new = "\n".join(line[1:] for line in lines if not line.startswith("-"))
        if text.count(old) != 1:
            raise SystemExit(f"the diff does not fit: {old!r}")
        text = text.replace(old, new)
    return text
