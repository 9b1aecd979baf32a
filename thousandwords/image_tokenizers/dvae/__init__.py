"""The discrete VAE (arXiv 2102.12092 §2.1)."""
