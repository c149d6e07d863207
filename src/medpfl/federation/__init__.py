"""Whole federations: the records of several sites and rounds, audited as one experiment."""
