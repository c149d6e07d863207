"""Optimizers of the searches. They know nothing of attacks."""
