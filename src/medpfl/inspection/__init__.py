"""``medpfl check-model``: what an update of a model leaks by construction."""
