"""How likely an image is under a caption, exactly: every generator here gives this, GANs and diffusion do not.

It is the likelihood of the image's tokens under the generator as trained: no guidance, no temperature, no
truncation. Left out: the pixels that a token leaves open, and the length of the caption.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from thousandwords.inference.batched import encode_in_batches
from thousandwords.inference.config import check_prompt
from thousandwords.inference.package import Package

BATCH_SIZE = 8  # images at a time; each needs (text and image positions) × (vocabulary) numbers of 8 bytes


@dataclass(frozen=True)
class Likelihood:
    """Log probabilities of one caption and one image, token by token."""

    text: Tensor | None  # (T,) ln p of each text token, 0 at pads; None if the generator does not model text
    image: Tensor  # (L,) ln p of each image token, given the caption and the tokens before it

    @property
    def caption_bits(self) -> float | None:
        """Bits of the caption, among all captions of as many text tokens; None if the generator does not model text."""
        return None if self.text is None else bits(self.text)

    @property
    def image_bits(self) -> float:
        """Bits of the whole image, given its caption."""
        return bits(self.image)

    @property
    def bits_per_token(self) -> float:
        """Mean bits of an image token; a uniform guess costs log2 of the vocabulary size."""
        return self.image_bits / len(self.image)


def bits(log_probabilities: Tensor) -> float:
    """The bits of all ln p together, summed in float64."""
    return -log_probabilities.double().sum().item() / math.log(2)


def likelihood(package: Package, caption: str, images: Sequence[np.ndarray]) -> list[Likelihood]:
    """The Likelihood of each image uint8 (H, W, 3) of any size, cropped and resized as in training."""
    return likelihood_of_tokens(package, caption, encode_in_batches(package.image_tokenizer, images))


def likelihood_of_tokens(package: Package, caption: str, tokens: Tensor) -> list[Likelihood]:
    """The Likelihood of each row of image tokens (B, L) for one caption. Raises EmptyPrompt."""
    device = next(package.generator.parameters()).device
    text = package.text_tokenizer.encode([check_prompt(caption)]).to(device)
    results: list[Likelihood] = []
    for batch in tokens.split(BATCH_SIZE):
        of_text, of_image = package.generator.log_probabilities(text.expand(len(batch), -1), batch.to(device))
        captions = [None] * len(batch) if of_text is None else of_text.cpu()
        results += [Likelihood(*row) for row in zip(captions, of_image.cpu(), strict=True)]
    return results
