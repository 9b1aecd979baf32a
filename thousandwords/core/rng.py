"""Random generators as functions of what they are used for: they have no state to save or to share."""

import torch


def step_rng(seed: int, step: int, device: str | torch.device = "cpu", part: int = 0) -> torch.Generator:
    """The random generator of one step and of one part of its batch; it depends only on the arguments.

    It must be on the device of the tensors that it fills: torch requires this.
    """
    return torch.Generator(device).manual_seed((seed * 1_000_003 + step + part * 2**40) % 2**63)
