"""The commands of `python -m thousandwords`: what adds the options of each, and what runs it."""
