"""Figures: reconstruction, caption match, CLIP score, image fidelity."""
