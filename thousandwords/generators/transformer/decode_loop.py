"""Drawing word after word: what is asked for, and the loop that every device but a GPU runs (there it is _graph.py's)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from thousandwords.generators import TO_DRAW
from thousandwords.sampling import draw, guide, truncate


@dataclass(frozen=True)
class Rest:
    """What is left of B pictures once the words have been read that all of them begin with."""

    given: Tensor  # (B, L), -1 where a word is to be drawn
    first: int  # the first position to draw
    uniform: Tensor  # (B, L) in [0, 1): a number for each draw
    truncation: tuple[float, int | None, float | None]  # temperature, top_k, top_p
    guidance: float


def draw_rest(rest: Rest, logits: Sequence[Tensor], read: Callable[[Tensor, int], Sequence[Tensor]]) -> Tensor:
    """All words (B, L). `logits` (B, V) of the first one: with the caption, and without where there is guidance.

    `read(words (B,), position)` gives those of the next.
    """
    tokens, is_given = rest.given.clone(), (rest.given != TO_DRAW).any(dim=0).tolist()
    for position in range(rest.first, tokens.shape[1]):
        words = draw(truncate(guide(logits[0], logits[-1], rest.guidance), *rest.truncation), rest.uniform[:, position])
        if is_given[position]:
            words = words.where(tokens[:, position] == TO_DRAW, tokens[:, position])
        tokens[:, position] = words
        if position + 1 < tokens.shape[1]:
            logits = read(words, position)
    return tokens


def known_first(given: Tensor) -> int:
    """How many cells from the first on are given in every row: [[7, 3, -1, 5], [7, 2, 4, 5]] -> 2."""
    return int((given != TO_DRAW).all(dim=0).long().cumprod(dim=0).sum())
