"""The paper's experiments as declarative files on top of the audit, and their tables."""
