"""Runs a user's own attack in a process of its own, which private images never enter."""
