"""A plain Flower app: two sites train a classifier of gray pictures."""
