"""Values that change with the training step, as pure functions of it (arXiv 2102.12092, appendix A.2).

A schedule keeps no state, so a resumed run is on the same value as one that never stopped. Plateau rules,
which look at the loss, are not here.
"""

from __future__ import annotations

import math


def cosine(step: int, start: float, end: float, steps: int) -> float:
    """From `start` at step 0 along half a cosine to `end` at `steps`, and there on: cosine(5, 0, 1, 10) -> 0.5"""
    if step >= steps:
        return end
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * max(step, 0) / steps))
