"""Random generators that are functions of what they are for: there is no state to lose, and none to share."""
from __future__ import annotations

import torch


def step_rng(seed: int, step: int, device: str | torch.device = "cpu", part: int = 0) -> torch.Generator:
    """The random generator of one step, and of one part of its batch: a function of its arguments, with no state to lose.

    It has to be on the device of the tensors that it fills: torch takes no other.
    """
    return torch.Generator(device).manual_seed((seed * 1_000_003 + step + part * 2**40) % 2**63)
