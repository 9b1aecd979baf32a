"""The image tokenizer's latents as a generator reads them: codes and convolutions that it keeps a copy of."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from thousandwords.core.special_tokens import UNKNOWN
from thousandwords.nn.quantizers import nearest
from thousandwords.nn.residual_scales import ResidualScales, area_means


class FrozenLatents(nn.Module):
    """Tokens (B, L) -> the latents after each scale (B, C, h, h), as in the tokenizer.

    Everything is a buffer: saved with the generator, trained by no optimizer, and float32 also where the generator's
    weights are bfloat16.
    """

    def __init__(self, scales: Sequence[int], vocab_size: int, channels: int, num_phi: int):
        super().__init__()
        self.scales = tuple(scales)
        self.register_buffer("codebook", torch.randn(vocab_size, channels))
        self.residual = ResidualScales(scales, channels, num_phi)
        for convolution in self.residual.phi:
            for name, weight in list(convolution.named_parameters()):
                delattr(convolution, name)
                convolution.register_buffer(name, weight.detach())

    @torch.no_grad()
    def copy_from(self, image_tokenizer: nn.Module) -> None:
        """Take the codes and convolutions of a trained tokenizer."""
        self.codebook.copy_(image_tokenizer.codebook)
        self.residual.load_state_dict(image_tokenizer.residual.state_dict())

    def after_each_scale(self, tokens: Tensor) -> list[Tensor]:
        """The latents after each scale, from the tokens of all scales (B, L)."""
        return self.residual.sums(self.codebook[tokens])

    def added_by(self, scale: int, tokens: Tensor) -> Tensor:
        """What the tokens of one scale (B, side * side) add to the latents: (B, C, h, h)."""
        return self.residual.part(scale, self.codebook[tokens])

    @torch.no_grad()
    def after_flips(self, tokens: Tensor, flips: Tensor) -> tuple[list[Tensor], Tensor]:
        """(the latents after each scale, the tokens (B, L) that are right after them), where some tokens were wrong.

        `flips` (B, L) has the wrong tokens, and -1 where there is none. What a wrong token added or left out is part of
        what the later scales have to approximate, so their right tokens are others: the code of the true token, moved
        by the mean of what is missing, is rounded again. A row without flips has its own tokens.
        """
        true_latents = self.after_each_scale(tokens)
        latents, seen, targets = torch.zeros_like(true_latents[0]), [], []
        lengths = [side * side for side in self.scales]
        parts = zip(tokens.split(lengths, dim=1), flips.split(lengths, dim=1), strict=True)
        for scale, (grid, flipped) in enumerate(parts):
            if scale:
                missing = true_latents[scale - 1] - latents
                points = self.codebook[grid] + area_means(missing, self.scales[scale])
                rounded = nearest(points.flatten(0, 1), self.codebook).view_as(grid)
                grid = torch.where(missing.flatten(1).any(dim=1, keepdim=True), rounded, grid)
            targets.append(grid)
            latents = latents + self.added_by(scale, torch.where(flipped == UNKNOWN, grid, flipped))
            seen.append(latents)
        return seen, torch.cat(targets, dim=1)
