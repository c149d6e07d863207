"""``medpfl train``, and the leakage over its rounds."""
