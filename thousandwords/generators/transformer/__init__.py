"""The autoregressive transformer (arXiv 2102.12092 §2.2)."""
