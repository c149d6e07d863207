"""Isolation: a user's own attack runs in a separate process that never receives private images."""
