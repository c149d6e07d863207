"""The federation: the client's local training, the update it sends, and the server's view."""
