"""The generator's contract: captions in, the words of a picture out.

One file of this folder is one kind; files that begin with an underscore are parts and no kinds. Text is always
(B, T) with -1 where the caption has ended, image tokens are always (B, L) in raster order, grid after grid of
`scales`. A kind is built from its own Config and these sizes. Here stands what every kind promises and what it
refuses at the door; how tokens are modelled stands in the kinds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

PAD = -1  # marks a text position behind the end of the caption; no word has a negative number
TO_DRAW = -1  # marks an image position whose word is not given


class Generator(nn.Module, ABC):
    """A model of the words of a picture, given those of its caption."""

    def __init__(self, text_vocab_size: int, text_length: int, image_vocab_size: int, scales: Sequence[int]):
        super().__init__()
        self.text_vocab_size = text_vocab_size
        self.text_length = text_length
        self.image_vocab_size = image_vocab_size
        self.scales = tuple(scales)

    @property
    def image_length(self) -> int:
        """L, the number of words of one picture: scales (8,) -> 64."""
        return sum(side * side for side in self.scales)

    @abstractmethod
    def loss(
        self, text: Tensor, image_tokens: Tensor, step: int, rng: torch.Generator, text_words: float | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """text (B, T), image_tokens (B, L) -> the loss, and {"text_loss", "image_loss"} in nats per word.

        Of a part of a batch, `text_words` says how many words of text a part has on average: the mean of the parts' losses is
        then the loss of the whole, although captions differ in length. None: as many as these rows have.
        """

    @abstractmethod
    def sample(
        self,
        text: Tensor,
        rngs: Sequence[torch.Generator],
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float = 1.0,
        given: Tensor | None = None,
    ) -> Tensor:
        """text (B, T), one random generator per row, given words (B, L) or None -> image tokens (B, L).

        `given` has -1 where a word is to be drawn; all other words come back as they are. Words are drawn in raster
        order, and one sees those before it only: a given word further down has no say in those drawn above it.

        `guidance` above 1 moves away from what would be drawn without a caption (`sampling.guide`); 1 does nothing.

        A row depends on its own text, given words and generator only: not on the batch it is drawn in. Each generator
        gives L numbers whatever is given, so that a picture given some of its own words comes out as it was.
        """

    @abstractmethod
    def log_probabilities(self, text: Tensor, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """ln p of each word given those before it: text (B, T), image_tokens (B, L) -> (B, T), (B, L), float32, nats.

        A pad is no word and has 0. The sum over a row's image part is the exact ln p(picture | caption): over all
        pictures there can be, the probabilities add up to 1. That of the text part is ln p of the caption among all
        captions of as many words. No gradient is kept.
        """

    def check_text(self, text: Tensor) -> None:
        """Refuse text that is not (B, text_length) of known words and pads."""
        if text.ndim != 2 or text.shape[1] != self.text_length:
            raise ValueError(
                f"text has shape {tuple(text.shape)}, wanted (B, {self.text_length}); "
                f"pad or cut captions to text_length {self.text_length}"
            )
        refuse_unknown_words("text", text, PAD, self.text_vocab_size)

    def check_image_tokens(self, image_tokens: Tensor) -> None:
        """Refuse image tokens that are not (B, L) of known words."""
        if image_tokens.ndim != 2 or image_tokens.shape[1] != self.image_length:
            raise ValueError(
                f"image_tokens has shape {tuple(image_tokens.shape)}, wanted (B, {self.image_length}) for "
                f"scales {self.scales}; tokenize the pairs with the image tokenizer this generator was made for"
            )
        refuse_unknown_words("image_tokens", image_tokens, 0, self.image_vocab_size)

    def check_given(self, given: Tensor, rows: int) -> None:
        """Refuse given words that are not (rows, L) int64 of known words and -1."""
        if given.shape != (rows, self.image_length) or given.dtype != torch.int64:
            raise ValueError(
                f"given is {given.dtype} of shape {tuple(given.shape)}, wanted torch.int64 ({rows}, {self.image_length}): "
                "a word for each cell, or -1 where one is to be drawn"
            )
        refuse_unknown_words("given", given, TO_DRAW, self.image_vocab_size)


def refuse_unknown_words(name: str, tokens: Tensor, first: int, vocab_size: int) -> None:
    """Raise unless every token lies in [first, vocab_size)."""
    if tokens.numel() == 0 or tokens.is_meta:
        return
    low, high = (int(bound) for bound in torch.aminmax(tokens))
    if low < first or high >= vocab_size:
        raise ValueError(
            f"{name} holds words {low}..{high}, but this generator knows {first}..{vocab_size - 1}; "
            "use the tokenizer it was trained with"
        )
