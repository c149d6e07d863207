"""Speed and strength of the attacks, side by side with others on the same gradients."""
