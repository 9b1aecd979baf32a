"""Work items over processes or machines, with the same bytes as in one process."""
