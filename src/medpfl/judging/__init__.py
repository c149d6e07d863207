"""Pure functions that turn an audit's rows into verdicts."""
