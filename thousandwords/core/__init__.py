"""Errors, settings, files, manifests, Parquet. Imports nothing else of this project."""
