"""The process that holds the models, and its request queue."""
