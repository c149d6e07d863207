"""From what a person gives, words or objects, to parts that are checked."""
