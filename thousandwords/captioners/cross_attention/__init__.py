"""A convolutional encoder and a text decoder that attends to its features."""
