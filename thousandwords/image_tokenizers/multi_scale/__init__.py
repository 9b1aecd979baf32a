"""The tokenizer of VAR: tokens of several grids, from coarse to fine, that add up to the image."""
