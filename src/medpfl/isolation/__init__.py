"""Execution of a user's own attack in a separate process, which never receives private images."""
