"""Differential privacy: accounting of epsilon, and success bounds for any attack."""
