"""Tokens and the tokenizer's image of them -> a better image. A kind is a folder; `base.py` holds the contract."""
