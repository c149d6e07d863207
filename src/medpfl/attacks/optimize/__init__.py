"""Optimizers for the searches. They know nothing about attacks."""
