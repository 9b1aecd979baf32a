"""The figures of a run: reconstruction and codebook against k-means, caption match, CLIP score. Arrays in, dicts out."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from thousandwords import metrics
from thousandwords.kmeans import fit_kmeans, kmeans_encode, kmeans_reconstruct, patches_of
from thousandwords.samples import Samples
from thousandwords.scene_reader import read_match
from thousandwords.scenes import parse
from thousandwords.seeds import step_rng
from thousandwords.shards import in_order

NAMES = {"validation": "seen", "unseen": "unseen"}  # a split -> what its colour-shape pairs are


@dataclass(frozen=True)
class Config:
    """The section `evaluation` of params.yaml."""

    pictures: int = 1024  # validation pictures that are reconstructed
    kmeans_pictures: int = 4096  # training pictures that the k-means yardstick learns from
    kmeans_iterations: int = 20
    shown: int = 16  # originals and reconstructions, and prompts per split, in the report
    frechet_pictures: int = 384  # validation pictures in the Fréchet distance; the paper has 30,000; 0 turns it off
    features: str | None = None  # what it compares by: a file with FID's Inception, an open_clip checkpoint; null: the own CLIP
    overlap_pictures: int = 2048  # training pictures that near twins of validation ones are sought among; 0 turns it off
    overlap_threshold: float | None = 0.98  # cosine of a twin; the paper's is not told. On the scenes it misses no near copy.
    # null: as the data say, such that 1 picture in 100 has a twin by chance (`likeness.threshold_by_chance`)

    def __post_init__(self) -> None:
        for name in ("pictures", "kmeans_pictures", "kmeans_iterations", "shown"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluation.{name} is {getattr(self, name)}; it needs to be 1 or more")
        for name in ("frechet_pictures", "overlap_pictures"):
            if getattr(self, name) < 0:
                raise ValueError(f"evaluation.{name} is {getattr(self, name)}; it is a count, and 0 turns it off")
        if self.overlap_threshold is not None and not -1 <= self.overlap_threshold <= 1:
            raise ValueError(f"evaluation.overlap_threshold is {self.overlap_threshold}; it is a cosine, from -1 to 1")


@dataclass(frozen=True)
class Reconstructions:
    """What the arg-max words of held-out pictures give back, beside a k-means codebook of the same size."""

    hard: Tensor  # (B, 3, H, W)
    psnr_hard: Tensor  # (B,) dB
    psnr_kmeans: Tensor
    tokens: Tensor  # (B, L)
    kmeans_tokens: Tensor
    vocab_size: int

    def psnr(self, seed: int) -> dict:
        """The block `reconstruction` of metrics.json: means over pictures, and their intervals."""
        return {
            **with_interval("psnr_hard", self.psnr_hard.numpy(), seed),
            **with_interval("psnr_kmeans", self.psnr_kmeans.numpy(), seed),
        }

    def codebook(self) -> dict:
        """The block `codebook` of metrics.json."""
        ours = metrics.codebook_usage(self.tokens, self.vocab_size)
        yardstick = metrics.codebook_usage(self.kmeans_tokens, self.vocab_size)
        return {
            **ours,
            "vocab_size": self.vocab_size,
            "perplexity_kmeans": yardstick["perplexity"],
            "used_kmeans": yardstick["used"],
        }


@torch.no_grad()
def reconstruct(tokenizer: nn.Module, held_out: Tensor, training: Tensor, iterations: int, seed: int) -> Reconstructions:
    """held_out, training (B, 3, H, W): hard reconstructions, and those of k-means over raw patches of `training`.

    The yardstick has as many words as the tokenizer and patches as large as a cell of its (finest) grid.
    """
    parts = [tokenizer.encode(held_out[rows]) for rows in in_order(len(held_out), tokenizer.images_at_once)]
    tokens = torch.cat(parts)
    hard = torch.cat([tokenizer.decode(tokens[rows]) for rows in in_order(len(tokens), tokenizer.images_at_once)])
    patch = tokenizer.image_size // max(tokenizer.scales)
    centroids = fit_kmeans(patches_of(training, patch), tokenizer.vocab_size, step_rng(seed, 0), iterations)
    flat = torch.cat([kmeans_reconstruct(held_out[rows], centroids, patch) for rows in in_order(len(held_out), 256)])
    return Reconstructions(
        hard=hard,
        psnr_hard=metrics.psnr(held_out, hard),
        psnr_kmeans=metrics.psnr(held_out, flat),
        tokens=tokens,
        kmeans_tokens=kmeans_encode(held_out, centroids, patch),
        vocab_size=tokenizer.vocab_size,
    )


def with_interval(name: str, values: ArrayLike, seed: int) -> dict[str, float | list[float]]:
    """{name: the mean of values (P,), name_interval: where it would fall for other such pictures, captions or prompts}"""
    values = np.asarray(values, dtype=np.float64)
    return {name: float(values.mean()), f"{name}_interval": metrics.bootstrap_interval(values, np.random.default_rng(seed))}


def is_scene_caption(caption: str) -> bool:
    """Whether the built-in reader can check a picture against this caption."""
    try:
        parse(caption)
    except ValueError:
        return False
    return True


def clip_score(scores: np.ndarray, seed: int) -> dict:
    """The block `clip_score` of metrics.json, of the scorer's raw cosines (P, N): `metrics.score_rates`, and its ends scaled.

    `scaled` is 100 max(cosine, 0), which is what many call CLIP score; Hessel et al. (arXiv 2104.08718) take 2.5 for 100.
    """
    scaled = 100 * np.maximum(np.asarray(scores, dtype=np.float64), 0)
    ends = {"n1": metrics.best_of_by_prompt(1, scores, scaled)}
    ends["best"] = metrics.best_of_by_prompt(np.shape(scores)[1], scores, scaled)
    told = {key: value for name, values in ends.items() for key, value in with_interval(name, values, seed).items()}
    return {**metrics.score_rates(scores, np.random.default_rng(seed)), "scaled": told}


def caption_match(
    samples: Samples, scores: np.ndarray, seed: int, progress: Callable[[Iterable, int], Iterable]
) -> tuple[dict, dict[int, list[dict[str, bool]]]]:
    """({"seen": rates, "unseen": rates}, {prompt: [what matches, per candidate]}); empty where captions are free text.

    scores (P, N). Each split's rates are `metrics.match_rates`.
    """
    readable = [prompt for prompt, caption in enumerate(samples.prompts) if is_scene_caption(caption)]
    readable = [prompt for prompt in readable if samples.splits[prompt] in NAMES]
    read = {
        prompt: [read_match(picture, samples.prompts[prompt]) for picture in samples.pictures(prompt)]
        for prompt in progress(readable, len(readable))
    }
    rates = {}
    for split, name in NAMES.items():
        rows = [prompt for prompt in readable if samples.splits[prompt] == split]
        if rows and len(rows) == samples.splits.count(split):
            table = {key: [[one[key] for one in read[row]] for row in rows] for key in read[rows[0]][0]}
            rates[name] = metrics.match_rates(scores[rows], table, np.random.default_rng(seed))
    return rates, read
