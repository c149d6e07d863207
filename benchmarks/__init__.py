"""Benchmarks: speed and strength of the attacks beside others on the same gradients."""
