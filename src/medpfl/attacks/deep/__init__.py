"""Deep networks: hidden values from the gradient of one image or a batch, layer by layer, and images from these."""
