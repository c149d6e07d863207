"""Adapters that record and defend updates in a running federation. Import each by name: ``flower``, ``nvflare``."""
