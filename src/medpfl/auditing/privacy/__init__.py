"""Privacy that defenses give by proof: their epsilon, and bounds on any attack."""
