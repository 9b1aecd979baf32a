"""CLIP, by open_clip (arXiv 2103.00020)."""
