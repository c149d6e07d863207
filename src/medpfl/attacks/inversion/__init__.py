"""Analytic inversion: layers whose inputs follow from their gradients, and the walks over them."""
