"""The next-scale transformer: all tokens of a grid in one pass (VAR, STAR, Switti)."""
