"""Limits on requests and connections."""
