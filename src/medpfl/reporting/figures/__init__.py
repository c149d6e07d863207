"""Figures: SVG inside the pages, PNG files of private images."""
