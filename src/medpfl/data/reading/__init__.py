"""Readers for image files, tables and archives, shared by the data sources."""
