"""The built-in data set: scenes rendered as images, and their attributes read back."""
