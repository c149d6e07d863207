"""Forecasts: the time that an audit's jobs will take, and the plan that ``--dry-run`` prints."""
