"""Shards of pairs and tokens, image operations, and batches for training."""
