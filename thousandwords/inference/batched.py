"""Encode, decode and score many images, a batch at a time, so that memory stays small."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from thousandwords.data.images import fit_square, to_float, to_uint8


@torch.no_grad()
def encode_in_batches(
    tokenizer: nn.Module, images: Sequence[np.ndarray], batch_size: int | None = None
) -> Tensor:
    """Encode images uint8 (H, W, 3) of any size, cropped and resized as in training, to token ids (B, L)."""
    device, batch_size = next(tokenizer.parameters()).device, batch_size or tokenizer.max_batch_size
    squares = torch.from_numpy(np.stack([fit_square(image, tokenizer.image_size) for image in images]))
    batches = squares.split(batch_size)
    return torch.cat([tokenizer.encode(to_float(batch.numpy()).to(device)).cpu() for batch in batches])


def decode_in_batches(tokenizer: nn.Module, tokens: Tensor, batch_size: int | None = None) -> Tensor:
    """Decode token ids (B, L) to images (B, 3, H, W) on the CPU."""
    device = next(tokenizer.parameters()).device
    batches = tokens.split(batch_size or tokenizer.max_batch_size)
    return torch.cat([tokenizer.decode(batch.to(device)).cpu() for batch in batches])


@torch.no_grad()
def paint(tokenizer: nn.Module, tokens: Tensor) -> np.ndarray:
    """Decode the tokens (B, L) of kept candidates to uint8 (B, H, W, 3), each alone: the same bytes whatever else is kept."""
    return to_uint8(decode_in_batches(tokenizer, tokens, batch_size=1))


def score_in_batches(scorer: nn.Module, images: Tensor, prompt: str, batch_size: int = 64) -> Tensor:
    """The score of each image (B, 3, H, W) for one prompt: (B,) on the CPU."""
    device, batches = next(scorer.parameters()).device, images.split(batch_size)
    return torch.cat([scorer.score(batch.to(device), [prompt] * len(batch)).cpu() for batch in batches])
