"""Small commands for the Makefile."""
