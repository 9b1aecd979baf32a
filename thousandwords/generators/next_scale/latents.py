"""The image tokenizer's latents as a generator reads them: codes and convolutions that it keeps a copy of."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

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
        what the later scales have to approximate, so their right tokens are others. A row without flips has its own.
        """
        true_latents = self.after_each_scale(tokens)
        latents, seen, targets = torch.zeros_like(true_latents[0]), [], []
        lengths = [side * side for side in self.scales]
        parts = zip(tokens.split(lengths, dim=1), flips.split(lengths, dim=1), strict=True)
        for scale, (grid, flipped) in enumerate(parts):
            if scale:
                grid = self.corrected(scale, grid, true_latents[scale - 1] - latents)
            targets.append(grid)
            latents = latents + self.added_by(scale, torch.where(flipped == UNKNOWN, grid, flipped))
            seen.append(latents)
        return seen, torch.cat(targets, dim=1)

    def corrected(self, scale: int, tokens: Tensor, missing: Tensor) -> Tensor:
        """The tokens (B, side * side) of one scale that are right where the latents after the scales before lack
        `missing` (B, C, h, h): each code, moved by the mean of what is missing, is rounded again."""
        points = self.codebook[tokens] + area_means(missing, self.scales[scale])
        rounded = nearest(points.flatten(0, 1), self.codebook).view_as(tokens)
        return torch.where(missing.flatten(1).any(dim=1, keepdim=True), rounded, tokens)


class KeptPart:
    """The parts of images that stay while the rest is sampled, from `fixed_tokens` as in `Generator.sample`.

    VAR (section 5.3) gives the kept cells of every grid the image's own tokens. But the sampled parts of the coarse grids reach
    into the kept part, so here the tokens after them are corrected for it.
    """

    def __init__(self, latents: FrozenLatents, fixed_tokens: Tensor):
        self.latents, (*_, side) = latents, latents.scales
        self.grids = fixed_tokens.split([side * side for side in latents.scales], dim=1)
        is_kept = (self.grids[-1] != UNKNOWN).view(-1, 1, side, side).float()
        # a coarse cell is kept if all cells under it are
        self.is_kept = [adaptive_avg_pool2d(is_kept, side).flatten(1) == 1 for side in latents.scales]
        self.true_latents = latents.after_each_scale(fixed_tokens[:, : -side * side].clamp(min=0))

    def put_into(self, sampled: Tensor, scale: int, so_far: Sequence[Tensor]) -> Tensor:
        """The sampled tokens (B, side * side) of a scale, with those of the kept cells in their places; `so_far` are the
        latents after each scale before."""
        grid = self.grids[scale].clamp(min=0)
        if scale:
            grid = self.latents.corrected(scale, grid, self.true_latents[scale - 1] - so_far[-1])
        return torch.where(self.is_kept[scale], grid, sampled)
