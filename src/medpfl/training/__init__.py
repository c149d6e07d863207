"""Federated training (``medpfl train``), and leakage over its rounds."""
