"""Channels: what a defense discloses, as a map that can be undone, and what is left of it."""
