"""Do drawn pictures look like real ones, and were the real ones seen in training: pure functions on features and pictures.

The Fréchet distance (Heusel et al., arXiv 1706.08500, §3) and the Inception Score (Salimans et al., arXiv 1606.03498, §4) as
the paper uses them: also after a blur of both sides, and with the held-out pictures that training has all but seen told apart
(arXiv 2102.12092, §3). Which network gives the features or the classes is the caller's matter: only Inception's pool features
make a Fréchet distance an FID.

Axes: N and M pictures, D features, K classes.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

RADII = range(9)    # of the paper's blur, in pixels; 0 leaves the pictures as they are
ROWS_AT_ONCE = 4096    # bounds the table (rows, rows) of similarities
REACH = 4    # standard deviations after which a Gaussian is cut


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """How far apart two sets lie, each taken as one Gaussian: (N, D), (M, D) -> |m_a - m_b|² + Tr(S_a + S_b - 2 √(S_a S_b)).

    In float64. 0 for equal means and covariances; small sets, and most of all N <= D, read too high. Raises ValueError.
    """
    mean_a, covariance_a = _moments(features_a)
    mean_b, covariance_b = _moments(features_b)
    if len(mean_a) != len(mean_b):
        raise ValueError(f"a Fréchet distance wants features of one width; found {len(mean_a)} and {len(mean_b)}")
    root = _symmetric_root(covariance_a)
    # S_a S_b and √S_a S_b √S_a have the same eigenvalues, and the second is symmetric
    shared = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp(min=0).sqrt().sum()
    spread = covariance_a.trace() + covariance_b.trace() - 2 * shared
    return max(0.0, float((mean_a - mean_b).square().sum() + spread))


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (D,) and the unbiased covariance (D, D) of features (N, D), in float64."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"a Fréchet distance wants features (N, D) of 2 or more pictures; found {tuple(features.shape)}")
    features = features.detach().cpu().double()
    if not features.isfinite().all():
        raise ValueError("a Fréchet distance was given features that are not finite numbers")
    return features.mean(dim=0), torch.cov(features.T).reshape(features.shape[1], -1)    # cov squeezes D = 1


def _symmetric_root(matrix: Tensor) -> Tensor:
    """The square root of a symmetric matrix (D, D) without negative eigenvalues, but for rounding."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def inception_score(probabilities: Tensor) -> float:
    """exp of the mean KL of each picture's classes from those of all: (N, K) -> 1, all alike, to K, sure and evenly spread.

    Over all pictures at once; reports that average ten tenths read lower. No stage calls it: it wants a classifier whose classes
    are kinds of things, and the scorer knows captions only. Raises ValueError.
    """
    if probabilities.ndim != 2 or len(probabilities) == 0:
        found = tuple(probabilities.shape)
        raise ValueError(f"an Inception Score wants probabilities (N, K) of 1 or more pictures; found {found}")
    each = probabilities.detach().cpu().double()
    if not (each.min() >= 0 and (each.sum(dim=1) - 1).abs().max() < 1e-3):
        raise ValueError("an Inception Score wants rows of probabilities that sum to 1; give the classifier's logits a softmax")
    of_all = each.mean(dim=0, keepdim=True)    # (1, K)
    divergence = torch.special.xlogy(each, each) - torch.special.xlogy(each, of_all)
    return float(divergence.sum(dim=1).mean().exp())


def blur(images: Tensor, radius: float) -> Tensor:
    """Images (B, 3, H, W) under a Gaussian, reflected at the edges: the same shape. Radius 0 gives the same images.

    The paper blurs with "a Gaussian kernel of radius r" (§3) and does not say what a radius is: here it is the standard
    deviation, in pixels of these images.
    """
    if radius < 0:
        raise ValueError(f"a blur's radius is 0 or more pixels; found {radius}")
    if radius == 0:
        return images
    rows, columns = (_blur_matrix(size, radius).to(images) for size in images.shape[2:])
    return rows @ images @ columns.T


def _blur_matrix(size: int, radius: float) -> Tensor:
    """What a blur does to a line of pixels, its reflections folded in: (size, size), each row sums to 1."""
    offsets = torch.arange(-math.ceil(REACH * radius), math.ceil(REACH * radius) + 1)
    weights = torch.exp(-offsets.double().square() / (2 * radius**2))
    places = torch.arange(size)[:, None] + offsets    # (size, offsets), some beyond the edges
    period = max(1, 2 * (size - 1))
    places = (size - 1) - ((places % period) - (size - 1)).abs()    # d c b | a b c d | c b a, as often as it takes
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, places, (weights / weights.sum()).expand(size, -1))


def nearest(features: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The most alike of `others` (M, D) for each of `features` (N, D): cosines (N,), indices (N,). Raises ValueError."""
    if features.ndim != 2 or others.ndim != 2 or features.shape[1] != others.shape[1] or len(others) == 0:
        raise ValueError("neighbours are looked for among features (N, D) and (M, D), M above 0; "
                         f"found {tuple(features.shape)} and {tuple(others.shape)}")    # fmt: skip
    features, others = (functional.normalize(rows.float(), dim=1) for rows in (features, others))
    similarity = features.new_full((len(features),), -math.inf)
    index = torch.zeros(len(features), dtype=torch.int64, device=features.device)
    for start in range(0, len(others), ROWS_AT_ONCE):
        for first in range(0, len(features), ROWS_AT_ONCE):
            here = slice(first, first + ROWS_AT_ONCE)
            best, place = (features[here] @ others[start : start + ROWS_AT_ONCE].T).max(dim=1)
            is_nearer = best > similarity[here]
            similarity[here] = similarity[here].where(~is_nearer, best)
            index[here] = index[here].where(~is_nearer, place + start)
    return similarity.clamp(-1, 1), index


@dataclass(frozen=True)
class Overlap:
    """The nearest training picture of each held-out one, and which held-out pictures are as good as trained on."""

    similarity: Tensor    # (N,) cosine
    index: Tensor    # (N,) of the training picture
    threshold: float

    @property
    def is_overlapping(self) -> Tensor:
        """(N,) bool: the neighbour is nearer than the threshold."""
        return self.similarity > self.threshold

    @property
    def share(self) -> float:
        return float(self.is_overlapping.double().mean())

    def closest(self, count: int) -> list[int]:
        """The held-out pictures with the nearest neighbours, nearest first."""
        return self.similarity.argsort(descending=True, stable=True)[:count].tolist()

    def around(self, count: int) -> list[int]:
        """The pictures just above and just below the threshold, `count` of each, nearest neighbours first."""
        edge = int(self.is_overlapping.sum())
        return self.closest(edge + count)[max(0, edge - count) :]


def overlap(held_out: Tensor, training: Tensor, threshold: float) -> Overlap:
    """Which held-out pictures have a training neighbour above a cosine: features (N, D), (M, D).

    The paper's threshold is conservative (§3.1): low enough to let hardly a picture through that training knew.
    """
    similarity, index = nearest(held_out, training)
    return Overlap(similarity, index, threshold)
