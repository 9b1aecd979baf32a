"""Captions as text tokens: normalization and byte-level BPE."""
