"""Differential privacy: what is spent, and what noise leaves to any attack."""
