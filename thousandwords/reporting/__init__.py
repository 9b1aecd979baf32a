"""Pages and plots: the report, comparisons, the human evaluation sheet."""
