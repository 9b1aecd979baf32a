"""The commands of `python -m thousandwords`, one module each: `add_to(subparsers)` adds its options,
`run(options)` runs it."""
