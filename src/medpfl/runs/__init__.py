"""Run directories: locking, identity, the study's key, and progress."""
