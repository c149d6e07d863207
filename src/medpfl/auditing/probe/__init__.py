"""Whether a defense does what it discloses, shown by playing it."""
