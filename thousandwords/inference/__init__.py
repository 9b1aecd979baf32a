"""Prompts -> candidates -> ranked images."""
