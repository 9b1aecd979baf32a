"""The studio: a page and an HTTP API to generate, inpaint, edit and compare images. Run: python -m studio."""
