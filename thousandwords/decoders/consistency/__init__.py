"""The flow decoder distilled to one or two steps."""
