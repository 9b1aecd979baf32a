"""Images -> captions as text tokens. A kind is a folder; `base.py` holds the contract."""
