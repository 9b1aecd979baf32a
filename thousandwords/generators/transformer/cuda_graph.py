"""Drawing word after word on a GPU: one position's work is captured as a CUDA graph and replayed, with no word from the host.

A position is some hundred small kernels, and Python takes longer to launch each than the GPU to run it. A graph has fixed
addresses, so all that changes lies in tensors: the position itself, the words, what was read before. Where a position is kept
comes from the tables of `Window`; `read_one`, the draw and the truncation are those of every other path. A test holds the words
equal.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thousandwords.compiling import in_short, tell
from thousandwords.generators import TO_DRAW
from thousandwords.generators._cache import LayerCache
from thousandwords.sampling import draw, guide, truncate

WARM = 2  # positions that are drawn uncaptured, so that libraries have made what a capture must not make

Read = Callable[[Tensor, Tensor, Sequence["Kept"]], Tensor]  # embedded words (B, D), position (1,), caches -> logits (B, V)


class Kept:
    """A `LayerCache` whose position is a tensor (1,) on its device: the `step` that `read_one` calls."""

    def __init__(self, cache: LayerCache) -> None:
        window, device = cache.window, cache.own.device
        self.cache, self.has_lines = cache, window.lines > 1
        self.line = torch.tensor(window.line, device=device)
        self.place = self.line * window.slots + torch.tensor(window.slot, device=device)  # among all slots of all lines

    def step(self, position: Tensor, read: Tensor) -> Tensor:
        """As `LayerCache.step`: queries, keys and values (B, 3, heads, x) -> (B, heads * x)."""
        cache, own = self.cache, self.cache.own
        slots = own.view(*own.shape[:3], -1, own.shape[-1])
        slots.index_copy_(3, self.place.index_select(0, position), read[:, 1:].transpose(0, 1)[:, :, :, None])
        line = own.index_select(3, self.line.index_select(0, position)) if self.has_lines else own
        keys, values = line[:, :, :, 0].flatten(1, 2)  # (B * heads, slots, x)
        hidden = cache.window.hidden.index_select(0, position)[0].to(keys.dtype)
        return cache._attend_to_both(read[:, 0] * read.shape[-1] ** -0.5, keys, values, hidden)


@dataclass
class Drawing:
    """The words of some rows as they are drawn, and all that the next one follows from: tensors that keep their places."""

    read: Read
    embed: Callable[[Tensor], Tensor]  # words (B,) -> (B, D)
    places: Tensor  # (L, D), added to them
    logits: list[Tensor]  # of the next word, (B, V) each: with the caption; without, where there is guidance
    caches: list[list[Kept]]
    tokens: Tensor  # (B, L), -1 where a word is to be drawn
    uniform: Tensor  # (B, L)
    position: Tensor  # (1,)
    truncation: tuple[float, int | None, float | None]
    guidance: float

    def step(self) -> None:
        """Draws the word at `position`, reads it, and moves on by one."""
        given = self.tokens.index_select(1, self.position)[:, 0]
        logits = truncate(guide(self.logits[0], self.logits[-1], self.guidance), *self.truncation)
        drawn = draw(logits, self.uniform.index_select(1, self.position)[:, 0])
        word = drawn.where(given == TO_DRAW, given)
        self.tokens.index_copy_(1, self.position, word[:, None])
        stream = self.embed(word) + self.places.index_select(0, self.position)
        for logits, caches in zip(self.logits, self.caches, strict=True):
            logits.copy_(self.read(stream, self.position, caches))
        self.position.add_(1)


@torch.no_grad()
def draw_to_the_end(drawing: Drawing) -> Tensor:
    """All words from `position` on: (B, L)."""
    left = drawing.tokens.shape[1] - int(drawing.position)
    for _ in range(min(WARM, left)):
        drawing.step()
    step = captured(drawing.step) if left > WARM and drawing.tokens.is_cuda else drawing.step
    for _ in range(left - WARM):
        step()
    return drawing.tokens


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """A step as a graph that was recorded, not run; the step itself, where it cannot be."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    try:
        with torch.cuda.graph(graph):
            step()
    except RuntimeError as error:
        tell(f"drawing could not be captured as a CUDA graph, and goes word by word: {in_short(error)}")
        return step
    return graph.replay
