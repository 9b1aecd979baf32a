"""No captioner: captions stay those of the data."""
