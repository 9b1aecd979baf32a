"""The training loop, optimizers, checkpoints, several processes."""
