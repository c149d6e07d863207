"""Label counts: how many images of each class are behind an update, from its last layer."""
