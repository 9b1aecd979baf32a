"""The commands of `python -m thousandwords`, one module each: `add_to(subparsers)` gives its options, `run(options)` does it."""
