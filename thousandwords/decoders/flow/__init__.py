"""Rectified flow from the tokenizer's image plus noise to the true image."""
