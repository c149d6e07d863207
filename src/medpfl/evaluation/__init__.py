"""``medpfl evaluate``: the standard evaluation."""
