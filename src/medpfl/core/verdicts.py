"""The three outcomes of an audit, and the names of its controls."""

__all__ = ["INCONCLUSIVE", "LEAKS", "MASKED", "NO_LEAK", "RANDOM_UPDATE", "RECORDED", "UNDEFENDED"]

LEAKS = "leaks"
NO_LEAK = "no leak found by these attacks"
INCONCLUSIVE = "inconclusive"

UNDEFENDED = "NoDefense()"
"""The spec of the undefended control."""
RECORDED = "Recorded()"
"""The spec of an update that was made elsewhere."""
MASKED = "masked-vector"
"""The control that attacks one client's masked message as if it were its update."""
RANDOM_UPDATE = "random-update"
"""The control that attacks random numbers in place of the update."""
