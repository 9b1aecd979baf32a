"""Gallery, data set and registry versions."""
