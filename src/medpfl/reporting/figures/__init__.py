"""Figures: SVG for the pages, PNG files for private images."""
