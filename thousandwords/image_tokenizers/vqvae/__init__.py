"""The VQ-VAE: tokens are the nearest codes of a codebook."""
