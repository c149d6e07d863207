"""The audit: the one place where data, clients, defenses, attacks and metrics meet."""
