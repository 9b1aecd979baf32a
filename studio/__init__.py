"""A page and an HTTP API over the models: ask, look, complete, set words, compare. Run: python -m studio."""
