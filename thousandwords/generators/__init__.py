"""Captions -> image tokens. A kind is a folder; `base.py` holds the contract."""
