"""The realism meter: on which favorable assumptions a leak depends."""
