"""Watch a training loop of any kind: its steps, losses and images."""
