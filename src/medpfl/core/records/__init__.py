"""Records of real updates: one file with an update and what is needed to attack it, and the client's own truth file."""
