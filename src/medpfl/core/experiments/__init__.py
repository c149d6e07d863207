"""Typed experiments: their options, the bounds of these, and the settings recorded with a run."""
