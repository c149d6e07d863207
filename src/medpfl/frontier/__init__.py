"""The price of privacy: what a defense leaves to be read, against what it takes from the model's accuracy."""
