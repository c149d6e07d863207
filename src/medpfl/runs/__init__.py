"""What every run directory has: its lock, its identity, the key of the study, its progress."""
