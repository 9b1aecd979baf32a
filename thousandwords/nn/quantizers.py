"""From vectors to tokens: a learned codebook (arXiv 1711.00937), FSQ (2309.15505) and SimVQ (2411.02038).

Everything here is float32, also under autocast: in bfloat16 the nearest code differs between machines. Axes: N
latents, K tokens, W latent width.
"""

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

Gather = Callable[[Tensor], list[Tensor]]  # a tensor -> that of every process, in the order of ranks

SMALLEST_USAGE = 1e-12  # so that a code that is never used keeps its place: 0 / 0 has none
FSQ_MARGIN = 1e-3  # epsilon of the FSQ paper's code: tanh never reaches the middle between two levels


def without_autocast(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Matrix products in float32 inside, whatever `training.precision` is."""
    # torch has no autocast on the meta device
    return contextlib.nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)


def nearest(points: Tensor, codes: Tensor) -> Tensor:
    """The nearest code of each point, by Euclidean distance, ties to the lowest index: (N, W), (K, W) -> (N,)."""
    with without_autocast(points):
        distances = torch.addmm(codes.square().sum(dim=1), points, codes.T, alpha=-2)
    return distances.argmin(dim=1)


def squared_distance(points: Tensor, codes: Tensor) -> Tensor:
    """The mean over N of the squared distances, sums over W as in the paper (its authors' code has the mean)."""
    return (points - codes).square().sum(dim=1).mean()


def token_shares(tokens: Tensor, vocab_size: int) -> Tensor:
    """The share of each token among tokens (N,): (K,); also on the meta device, where bincount is missing."""
    ones = torch.ones_like(tokens, dtype=torch.float32)
    return ones.new_zeros(vocab_size).index_add_(0, tokens, ones) / len(tokens)


def code_metrics(points: Tensor, codes: Tensor, tokens: Tensor, vocab_size: int) -> dict[str, Tensor]:
    """The mean distance of points to their codes (N, W), and the perplexity of their tokens (N,), to log."""
    shares = token_shares(tokens, vocab_size)
    return {
        "code_distance": (points - codes).detach().norm(dim=1).mean(),
        "batch_perplexity": torch.special.entr(shares).sum().exp(),
    }


def usage_and_sums(points: Tensor, tokens: Tensor, vocab_size: int) -> Tensor:
    """For each token the share of points that have it, and their sum divided by N: (N, W), (N,) -> (K, 1 + W)."""
    rows = torch.cat([torch.ones_like(points[:, :1]), points], dim=1)
    return rows.new_zeros(vocab_size, rows.shape[1]).index_add_(0, tokens, rows) / len(points)


def kmeans_plus_plus(points: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """`count` of the points (N, W), each chosen in proportion to its squared distance to those before it."""
    chosen = torch.randint(len(points), (1,), generator=rng, device=points.device)
    distances = torch.full_like(points[:, 0], math.inf)
    for _ in range(count - 1):
        newest = (points - points[chosen[-1]]).square().sum(dim=1)
        distances = torch.minimum(distances, newest)
        # the floor is for fewer different points than codes
        chosen = torch.cat([chosen, distances.clamp_min(1e-20).multinomial(1, generator=rng)])
    return points[chosen]


class Quantizer(nn.Module, ABC):
    """Latents (N, W) float32 -> points, and the codes that they are rounded to."""

    starts_from_latents = False  # whether the first codes are chosen among latents of a trained encoder

    @property
    @abstractmethod
    def codebook(self) -> Tensor:
        """The vectors of all tokens (K, W)."""

    @abstractmethod
    def points(self, latents: Tensor) -> Tensor:
        """Latents (N, W) in the space of the codes, differentiable."""

    @abstractmethod
    def tokens(self, points: Tensor) -> Tensor:
        """The token of each point: (N, W) -> (N,) int64."""

    @abstractmethod
    def loss(self, points: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """(the quantizer's part of the loss, the commitment loss in it), from points and their codes (N, W)."""

    def start(self, points: Tensor, rng: torch.Generator) -> None:
        """Choose the first codes among points (N, W)."""

    def after_update(
        self, points: Tensor, step: int, rng: torch.Generator, gather: Gather
    ) -> dict[str, float]:
        """Move codes after an update of the weights, from this process's points; the values to log."""
        return {}


class VectorQuantizer(Quantizer):
    """A codebook of vectors, by gradient or as the average of the latents near them.

    The average (arXiv 1711.00937, appendix A.1) is sums / usage, both exponential moving averages from zero whose
    first value is the start's: the ratio has no bias towards zero, and codes follow the latents quickly at first.
    A moving average of weights averages both, so that the kept codes belong to the kept weights.
    """

    starts_from_latents = True

    def __init__(self, config) -> None:
        super().__init__()
        self.config = config
        vectors = self.first_vectors()
        # of each code: the average share of latents that it is nearest to; their sum grows from 0 to 1
        usage = torch.full((config.vocab_size,), (1 - config.codebook_decay) / config.vocab_size)
        self.register_buffer("usage", usage)
        if config.codebook == "ema":
            self.register_buffer("sums", vectors * usage[:, None])
        else:
            self.vectors = nn.Parameter(vectors)

    @property
    def codebook(self) -> Tensor:
        is_average = self.config.codebook == "ema"
        return self._normalized(self.sums / self.usage[:, None] if is_average else self.vectors)

    def first_vectors(self) -> Tensor:
        """The codes (K, W) before `start`."""
        return torch.randn(self.config.vocab_size, self.config.latent_width)

    def points(self, latents: Tensor) -> Tensor:
        return self._normalized(latents)

    def tokens(self, points: Tensor) -> Tensor:
        return nearest(points, self.codebook)

    def loss(self, points: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        commitment = squared_distance(points, codes.detach())
        loss = self.config.commitment_weight * commitment
        if self.config.codebook == "gradient":
            loss = loss + squared_distance(points.detach(), codes)
        return loss, commitment

    @torch.no_grad()
    def start(self, points: Tensor, rng: torch.Generator) -> None:
        """Set the codes to the means of the points nearest to the seeds of k-means++."""
        size = len(self.usage)
        seeds = kmeans_plus_plus(points, size, rng)
        usage, sums = usage_and_sums(points, nearest(points, seeds), size).tensor_split([1], dim=1)
        usage = usage[:, 0]
        every = torch.arange(size, device=points.device)
        means = torch.where(usage[:, None] > 0, sums / usage[:, None], seeds)
        self._place(every, means, (1 - self.config.codebook_decay) * usage)

    @torch.no_grad()
    def after_update(
        self, points: Tensor, step: int, rng: torch.Generator, gather: Gather
    ) -> dict[str, float]:
        config, size = self.config, len(self.usage)
        tokens = self.tokens(points)
        parts = gather(usage_and_sums(points, tokens, size))
        usage, sums = (sum(parts) / len(parts)).tensor_split([1], dim=1)
        self.usage.lerp_(usage[:, 0], 1 - config.codebook_decay)
        if config.codebook == "ema":
            self.sums.lerp_(sums, 1 - config.codebook_decay)
            kept = (SMALLEST_USAGE / self.usage).clamp_min(1)
            self.sums *= kept[:, None]
        self.usage.clamp_min_(SMALLEST_USAGE)
        if not config.restarts_codes(step):
            return {"codes_restarted": 0.0}
        errors = (points - self.codebook[tokens]).square().sum(dim=1)
        return {"codes_restarted": self._restart(torch.cat(gather(points)), torch.cat(gather(errors)), rng)}

    def _restart(self, points: Tensor, errors: Tensor, rng: torch.Generator) -> float:
        """Move codes used by less than a tenth of the average to points drawn in proportion to their errors."""
        average = self.usage.mean()
        dead = (self.usage < 0.1 * average).nonzero()[:, 0][: int(errors.count_nonzero())]
        if len(dead):
            rows = errors.multinomial(len(dead), generator=rng)
            self._place(dead, points[rows], average.expand(len(dead)))
        return float(len(dead))

    def _place(self, tokens: Tensor, vectors: Tensor, usage: Tensor) -> None:
        self.usage[tokens] = usage.clamp_min(SMALLEST_USAGE)
        if self.config.codebook == "ema":
            self.sums[tokens] = vectors * self.usage[tokens, None]
        else:
            self.vectors[tokens] = vectors

    def _normalized(self, vectors: Tensor) -> Tensor:
        return functional.normalize(vectors, dim=-1) if self.config.l2_normalize else vectors


class FiniteScalarQuantizer(Quantizer):
    """Each dimension is rounded to one of its levels; a token is the levels as one number, the first dimension
    the fastest (arXiv 2309.15505, appendix A.1). Nothing is learned, and no code can die."""

    def __init__(self, config) -> None:
        super().__init__()
        levels = torch.tensor(config.levels)
        factors = torch.cat([torch.ones(1, dtype=torch.int64), levels.cumprod(0)[:-1]])
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("factors", factors, persistent=False)

    @property
    def codebook(self) -> Tensor:
        tokens = torch.arange(int(self.levels.prod()), device=self.levels.device)[:, None]
        return (tokens // self.factors % self.levels - self.levels // 2) / (self.levels // 2)

    def points(self, latents: Tensor) -> Tensor:
        """tanh, scaled to the levels; an even number of them has its middle half a level above 0."""
        half = (self.levels - 1) * (1 - FSQ_MARGIN) / 2
        offset = (self.levels % 2 == 0) / 2
        return (torch.tanh(latents + torch.tan(offset / half)) * half - offset) / (self.levels // 2)

    def tokens(self, points: Tensor) -> Tensor:
        levels = (points * (self.levels // 2)).round().long() + self.levels // 2
        return (levels * self.factors).sum(dim=1)

    def loss(self, points: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        return points.new_zeros(()), squared_distance(points, codes).detach()


class SimVQ(Quantizer):
    """A fixed table of random vectors behind one learned affine map, which moves all codes at once: none can
    die alone (arXiv 2411.02038, section 4)."""

    def __init__(self, config) -> None:
        super().__init__()
        self.commitment_weight = config.commitment_weight
        table = torch.randn(config.vocab_size, config.latent_width) / math.sqrt(config.latent_width)
        self.register_buffer("table", table)
        self.affine = nn.Linear(config.latent_width, config.latent_width)

    @property
    def codebook(self) -> Tensor:
        with without_autocast(self.table):
            return self.affine(self.table)

    def points(self, latents: Tensor) -> Tensor:
        return latents

    def tokens(self, points: Tensor) -> Tensor:
        return nearest(points, self.codebook)

    def loss(self, points: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        commitment = squared_distance(points, codes.detach())
        return self.commitment_weight * commitment + squared_distance(points.detach(), codes), commitment


QUANTIZERS: dict[str, type[Quantizer]] = {"vq": VectorQuantizer, "fsq": FiniteScalarQuantizer, "simvq": SimVQ}
