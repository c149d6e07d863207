"""The paper's experiments as declarative files over the audit, and the tables that come of them."""
