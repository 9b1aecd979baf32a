"""How well an image fits a caption. A kind is a folder; `base.py` holds the contract."""
