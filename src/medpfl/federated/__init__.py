"""The federation: the client's local update, what leaves it, and what the server sees."""
