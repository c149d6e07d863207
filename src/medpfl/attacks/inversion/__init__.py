"""Analytic inversion: layers whose inputs follow from their gradients, and the recursions over them."""
