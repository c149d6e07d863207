"""From rows to a verdict: pure functions of findings."""
