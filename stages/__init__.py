"""One thin module per DVC stage: read, call the library, write. Run as `python -m stages.<name> --help`."""
