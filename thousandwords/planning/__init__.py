"""Time, disk and cost of a run before it starts."""
