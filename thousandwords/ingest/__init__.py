"""A source of captioned images -> pair shards."""
