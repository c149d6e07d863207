"""Charts."""


def charts() -> dict[str, str]:
    """Return none yet."""
    return {}
