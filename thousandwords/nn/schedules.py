"""Values that change with the training step, as pure functions of it (arXiv 2102.12092, appendix A.2)."""

import math
from collections.abc import Iterable


def cosine(step: int, start: float, end: float, steps: int) -> float:
    """Half a cosine from `start` at step 0 to `end` at `steps`, then constant: cosine(5, 0, 1, 10) -> 0.5"""
    if step >= steps:
        return end
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * max(step, 0) / steps))


def halvings(losses: Iterable[float], patience: int) -> int:
    """How often a rate has been halved: each time `patience` losses in a row were not below the best.

    The paper halves its rate by hand at a plateau (appendix B.2). halvings([3, 2, 2, 2, 1], patience=2) -> 1
    """
    best, waited, count = math.inf, 0, 0
    for loss in losses:
        if loss < best:
            best, waited = loss, 0
            continue
        waited += 1
        if waited == patience:
            waited, count = 0, count + 1
    return count
