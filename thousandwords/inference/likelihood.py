"""How likely a picture is under a caption, exactly: what an autoregressive model gives, and GANs and diffusion do not.

The likelihood is that of the picture's words, as its tokenizer sees it, under the generator as it is: no guidance, no
temperature, no truncation. Fewer bits are a likelier picture; many, in one cell, are something the model did not expect
there. Left out: the pixels that a word leaves open, and how long a caption is.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from thousandwords.drawing import check_prompt, encode_in_parts
from thousandwords.package import Package

ROWS = 8  # pictures read at a time; a row takes (text and image positions) x (vocabulary) numbers of 8 bytes


@dataclass(frozen=True)
class Likelihood:
    """How likely one caption and one picture are, word by word."""

    text: Tensor  # (T,) ln p of each word of the caption, 0 at pads
    image: Tensor  # (L,) ln p of each word of the picture, given the caption and the words before

    @property
    def caption_bits(self) -> float:
        """Bits of the caption, among all captions of as many words."""
        return bits(self.text)

    @property
    def picture_bits(self) -> float:
        """Bits of the whole picture, given its caption."""
        return bits(self.image)

    @property
    def bits_per_word(self) -> float:
        """Bits of a word of the picture, on average; a blind guess costs log2 of the vocabulary."""
        return self.picture_bits / len(self.image)


def bits(log_probabilities: Tensor) -> float:
    """Any number of ln p -> the bits of all of them together, summed in float64."""
    return -log_probabilities.double().sum().item() / math.log(2)


def likelihood(package: Package, caption: str, pictures: Sequence[np.ndarray]) -> list[Likelihood]:
    """One caption, and pictures uint8 (H, W, 3) of any size, cropped and resized as in training -> one Likelihood each."""
    return likelihood_of_words(package, caption, encode_in_parts(package.image_tokenizer, pictures))


def likelihood_of_words(package: Package, caption: str, tokens: Tensor) -> list[Likelihood]:
    """The same for pictures that are words already: (B, L). Raises EmptyPrompt."""
    device = next(package.generator.parameters()).device
    text = package.text_tokenizer.encode([check_prompt(caption)]).to(device)
    parts = [package.generator.log_probabilities(text.expand(len(part), -1), part.to(device)) for part in tokens.split(ROWS)]
    return [Likelihood(*row) for part in parts for row in zip(*(half.cpu() for half in part), strict=True)]
