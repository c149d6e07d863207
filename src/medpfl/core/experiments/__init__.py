"""Typed experiments: what can be asked for, within which bounds, and what was found out first."""
