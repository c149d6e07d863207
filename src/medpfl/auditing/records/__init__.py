"""Audits of recorded updates: one client's, or the mean of several."""
