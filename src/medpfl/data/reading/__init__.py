"""Readers of image files, tables and archives, whatever data source uses them."""
