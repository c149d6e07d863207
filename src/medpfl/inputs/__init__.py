"""Conversion of user input, text or objects, into checked parts."""
