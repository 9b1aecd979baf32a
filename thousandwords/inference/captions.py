"""Captions of images by a captioner."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from thousandwords.data.images import to_float
from thousandwords.data.recaptions import RecaptionConfig
from thousandwords.text.bpe import TextTokenizer

BATCH_SIZE = 128  # images captioned at a time


def caption_images(
    captioner: nn.Module,
    text_tokenizer: TextTokenizer,
    images: np.ndarray,
    seeds: Sequence[int],
    config: RecaptionConfig,
) -> list[str]:
    """A caption of each image uint8 (B, H, W, 3), of the captioner's size; it depends on the image and its seed only."""
    device, captions = next(captioner.parameters()).device, []
    for first in range(0, len(images), BATCH_SIZE):
        rows = slice(first, first + BATCH_SIZE)
        rngs = [torch.Generator().manual_seed(seed) for seed in seeds[rows]]
        batch = to_float(images[rows]).to(device)
        text = captioner.caption(batch, rngs, config.candidates, config.top_p).cpu()
        captions += [text_tokenizer.decode(row) for row in text]
    return captions


def caption_seed(seed: int, key: str) -> int:
    """One 63-bit seed per (seed, key of the pair)."""
    return int.from_bytes(hashlib.sha256(f"caption\0{seed}\0{key}".encode()).digest()[:8], "big") >> 1
