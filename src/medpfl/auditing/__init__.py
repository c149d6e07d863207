"""The audit, in which data, clients, defenses, attacks and metrics come together."""
