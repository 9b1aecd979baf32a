"""The Generator contract: captions in, image tokens out.

A kind is a folder with a model.py, built from its own config and the sizes below. Text tokens are (B, T) with
-1 after the end of a caption, image tokens (B, L) in raster order, the grids of `scales` one after the other.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from thousandwords.core.special_tokens import PAD, UNKNOWN


class Generator(nn.Module, ABC):
    """A model of the tokens of an image, given the text tokens of its caption."""

    # patterns of the output head's parameters that belong to image tokens (`generator.tune: image_head`)
    image_head: tuple[str, ...] = ()
    is_token_by_token = True  # how it samples; else a whole grid at a time
    models_text = True  # whether captions have a probability too; without it every figure of text is absent
    # whether the tokens of several grids keep a part of an image; else any single token may be fixed
    keeps_parts = False

    def __init__(self, text_vocab_size: int, text_length: int, image_vocab_size: int, scales: Sequence[int]):
        super().__init__()
        self.text_vocab_size = text_vocab_size
        self.text_length = text_length
        self.image_vocab_size = image_vocab_size
        self.scales = tuple(scales)

    @property
    def image_length(self) -> int:
        """L, the number of tokens of one image: scales (8,) -> 64."""
        return sum(side * side for side in self.scales)

    @classmethod
    def sizes_for(cls, image_tokenizer: nn.Module) -> dict[str, int]:
        """The further sizes that a generator of this tokenizer's tokens is built with.

        Raises ValueError, one sentence with the fix, if this kind has no use for such tokens.
        """
        return {}

    def use_tokenizer(self, image_tokenizer: nn.Module) -> None:
        """Copy what this kind needs of the trained image tokenizer, once, before the training; most need nothing. It is
        saved with the generator, whose header names the tokenizer's fingerprint."""
        return None

    @abstractmethod
    def loss(
        self,
        text: Tensor,
        image_tokens: Tensor,
        step: int,
        rng: torch.Generator,
        num_text_tokens: float | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """text (B, T), image_tokens (B, L) -> the loss, and {"text_loss", "image_loss"} in nats per token; without
        `text_loss` if this kind does not model text.

        `num_text_tokens`: the mean number of text tokens per micro-batch, so that the mean of their losses is
        the loss of the whole batch. None: those of these rows.
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
        fixed_tokens: Tensor | None = None,
    ) -> Tensor:
        """Sample image tokens (B, L) for text (B, T), with one random generator per row.

        `fixed_tokens` (B, L) has -1 where a token is to be sampled; the others are returned unchanged, and
        influence only the tokens after them. `guidance` above 1 moves away from what would be sampled without
        a caption; 1 has no effect. A row depends only on its own text, fixed tokens and random generator. Each
        generator gives L numbers, so that an image sampled again with some of its own tokens fixed is the same.

        With `keeps_parts` a row of `fixed_tokens` is -1, or the tokens of a whole image with -1 at some cells of its finest
        grid: there the image is sampled, elsewhere it stays, as nearly as tokens after other coarse grids can say it.
        """

    @abstractmethod
    def log_probabilities(self, text: Tensor, image_tokens: Tensor) -> tuple[Tensor | None, Tensor]:
        """ln p of each token given those before it, in nats: (B, T), (B, L) -> (B, T), (B, L) float32, 0 at pads.

        The sum over a row's image tokens is the exact ln p(image | caption), over its text tokens ln p of the
        caption among all of the same length: None if this kind does not model text. No gradient is kept.
        """

    def check_text(self, text: Tensor) -> None:
        """Raise ValueError unless text is (B, text_length), of known tokens and pads."""
        if text.ndim != 2 or text.shape[1] != self.text_length:
            raise ValueError(
                f"text has shape {tuple(text.shape)}, expected (B, {self.text_length}); "
                f"pad or cut captions to text_length {self.text_length}"
            )
        check_token_range("text", text, PAD, self.text_vocab_size)

    def check_image_tokens(self, image_tokens: Tensor) -> None:
        """Raise ValueError unless image tokens are (B, L), of known tokens."""
        if image_tokens.ndim != 2 or image_tokens.shape[1] != self.image_length:
            raise ValueError(
                f"image_tokens has shape {tuple(image_tokens.shape)}, expected (B, {self.image_length}) for "
                f"scales {self.scales}; tokenize the pairs with the image tokenizer this generator was made for"
            )
        check_token_range("image_tokens", image_tokens, 0, self.image_vocab_size)

    def check_fixed_tokens(self, fixed_tokens: Tensor, rows: int) -> None:
        """Raise ValueError unless fixed tokens are (rows, L) int64, of known tokens and -1, as `sample` takes them."""
        if fixed_tokens.shape != (rows, self.image_length) or fixed_tokens.dtype != torch.int64:
            raise ValueError(
                f"fixed_tokens is {fixed_tokens.dtype} of shape {tuple(fixed_tokens.shape)}, "
                f"expected torch.int64 ({rows}, {self.image_length}): a token for each cell, or -1 to sample one"
            )
        check_token_range("fixed_tokens", fixed_tokens, UNKNOWN, self.image_vocab_size)
        if not self.keeps_parts:
            return
        is_fixed, coarse = fixed_tokens != UNKNOWN, self.image_length - self.scales[-1] ** 2
        is_whole, is_any = is_fixed[:, :coarse].all(dim=1), is_fixed.any(dim=1)
        if (is_any & ~(is_whole & is_fixed[:, coarse:].any(dim=1))).any():
            raise ValueError(
                f"fixed_tokens has -1 among the first {coarse} tokens of a row, or no token after them. A token of a "
                "coarse grid is a part of the whole image: give all tokens of the image, and -1 at the cells of its "
                f"finest grid ({self.scales[-1]} x {self.scales[-1]}) that are to be sampled"
            )


def check_token_range(name: str, tokens: Tensor, first: int, vocab_size: int) -> None:
    """Raise ValueError unless every token is in [first, vocab_size)."""
    if tokens.numel() == 0 or tokens.is_meta:
        return
    low, high = (int(bound) for bound in torch.aminmax(tokens))
    if low < first or high >= vocab_size:
        raise ValueError(
            f"{name} has tokens {low}..{high}, but this generator knows {first}..{vocab_size - 1}; "
            "use the tokenizer it was trained with"
        )


def check_rngs(rngs: Sequence[torch.Generator], rows: int) -> None:
    """Raise ValueError unless there is one random generator per row."""
    if len(rngs) != rows:
        raise ValueError(f"{rows} rows of text came with {len(rngs)} random generators; give one per row")


def drop_captions(text: Tensor, share: float, rng: torch.Generator) -> Tensor:
    """text (B, T) with about `share` of its rows replaced by pads: the model also learns images without captions."""
    is_dropped = torch.rand(len(text), generator=rng, device=rng.device).to(text.device) < share
    return text.masked_fill(is_dropped[:, None], PAD)
