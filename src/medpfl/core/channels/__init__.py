"""Channels: a defense's disclosure as a map, and the inversion of this map where possible."""
