"""Values that change with the training step, as pure functions of it (arXiv 2102.12092, appendix A.2).

A schedule keeps no state, so a resumed run is on the same value as one that never stopped. The plateau rule, too, is a
function: of the losses seen so far, which travel in the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterable


def cosine(step: int, start: float, end: float, steps: int) -> float:
    """From `start` at step 0 along half a cosine to `end` at `steps`, and there on: cosine(5, 0, 1, 10) -> 0.5"""
    if step >= steps:
        return end
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * max(step, 0) / steps))


def halvings(losses: Iterable[float], patience: int, least_gain: float = 0.0) -> int:
    """How often a rate has been halved: each time `patience` losses in a row were not `least_gain` below the best.

    The paper halves its rate whenever the loss plateaus, five times in 430,000 updates (appendix B.2), by eye; this is our rule.
    halvings([3, 2, 2, 2, 1], patience=2) -> 1
    """
    best, waited, count = math.inf, 0, 0
    for loss in losses:
        if loss < best - least_gain:
            best, waited = loss, 0
            continue
        waited += 1
        if waited == patience:
            waited, count = 0, count + 1
    return count
