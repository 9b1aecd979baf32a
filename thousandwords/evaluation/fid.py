"""Distances between generated and real images: pure functions on features and images.

The Inception Score (Salimans et al., arXiv 1606.03498, §4) and the kernel distance are computed by
torch-fidelity, as for published figures. The Fréchet distance (Heusel et al., arXiv 1706.08500, §3) and
precision and recall agree with it to seven digits, but are our own: the distance takes a hundredth of the
time, so that it can have an interval, and precision and recall are given per image. Only with Inception's pool
features is a Fréchet distance an FID, and a kernel distance a KID.

Axes: N real images, M samples, D features, K classes.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

RADII = range(9)  # of the paper's blur, in pixels; 0 is no blur
ROWS_AT_ONCE = 4096  # bounds the table (rows, N) of distances
SUBSETS, MAX_SUBSET_SIZE = 100, 1000  # of a kernel distance, as usual for KID
NEIGHBORS = 3  # of precision and recall, as in their paper
BOOTSTRAP_ROUNDS = 50  # for the interval of a Fréchet distance; gives its width to a tenth
DECIMALS = 12  # of a Fréchet distance of sets with total variance 1; rounding changes those after them
TWO_SIDED_95 = 1.96  # standard deviations of a Gaussian
SPLITS = 10  # of an Inception Score, as usual
BLUR_CUTOFF = 4  # standard deviations at which the Gaussian is cut


def frechet_distance(samples: Tensor, real: Tensor) -> float:
    """The distance of two sets as Gaussians: (M, D), (N, D) -> |m_a - m_b|² + Tr(S_a + S_b - 2 √(S_a S_b)).

    In float64. Small sets give too high a value, most of all if M <= D. The trace of √(S_a S_b) is the sum of
    the singular values of A Bᵀ, where S_a = Aᵀ A and S_b = Bᵀ B, so the cost of a small set depends on its
    images: 384 images of 2,048 features take 0.1 s instead of 9 s.
    """
    sets = [_checked("a Fréchet distance", features) for features in (samples, real)]
    means = [features.mean(dim=0) for features in sets]
    roots = [(x - mean) / math.sqrt(max(1, len(x) - 1)) for x, mean in zip(sets, means, strict=True)]
    traces = sum(float(root.square().sum()) for root in roots)
    reduced = [torch.linalg.qr(root, mode="r").R if len(root) > root.shape[1] else root for root in roots]
    cross_trace = float(torch.linalg.svdvals(reduced[0] @ reduced[1].T).sum())
    distance = float((means[0] - means[1]).square().sum()) + traces - 2 * cross_trace
    # the error is a share of the terms, not of their small difference, which it can make less than 0
    decimals = DECIMALS - math.ceil(math.log10(traces)) if traces else DECIMALS
    return max(0.0, round(distance, decimals))


def frechet_interval(
    samples: Tensor, real: Tensor, prompts: Sequence[int], rng: np.random.Generator
) -> list[float]:
    """The 95% interval [low, high] of the distance of (M, D) and (N, D), by bootstrap, centered at the distance.

    Samples with the same entry in `prompts` (M,) are resampled together. A resampled set has some images twice,
    which raises its distance, so only the deviation of the resampled distances is used. With about as many
    images as features the interval is too wide: 1.7 times for 384 images in this pipeline's own CLIP.
    """
    members = [np.flatnonzero(np.asarray(prompts) == prompt) for prompt in dict.fromkeys(prompts)]
    distances = []
    for _ in range(BOOTSTRAP_ROUNDS):
        rows = np.concatenate([members[index] for index in rng.integers(len(members), size=len(members))])
        real_rows = rng.integers(len(real), size=len(real))
        distances.append(frechet_distance(samples[rows], real[real_rows]))
    half_width = TWO_SIDED_95 * float(np.std(distances, ddof=1))
    distance = frechet_distance(samples, real)
    return [max(0.0, distance - half_width), distance + half_width]


def kernel_distance(samples: Tensor, real: Tensor, seed: int) -> dict[str, float | int]:
    """The squared MMD of sets (M, D), (N, D) by the cubic kernel (x·y / D + 1)³, the mean over random subsets of
    `size` images: {"mean", "deviation", "subsets", "size"}; with Inception's features KID (arXiv 1801.01401).

    Unbiased: it does not depend on the number of images. Computed in the precision of the features: published
    digits are of float32; very similar sets need float64.
    """
    for features in (samples, real):
        _checked("a kernel distance", features)
    # at most half of a set, so that subsets differ
    size = min(MAX_SUBSET_SIZE, len(samples) // 2, len(real) // 2)
    result = kid_features_to_metric(
        samples.detach().cpu(),
        real.detach().cpu(),
        kid_subsets=SUBSETS,
        kid_subset_size=size,
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1.0,
        rng_seed=seed,
        verbose=False,
    )
    mean, deviation = result[KEY_METRIC_KID_MEAN], result[KEY_METRIC_KID_STD]
    return {"mean": mean, "deviation": deviation, "subsets": SUBSETS, "size": size}


def precision_recall(samples: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Which samples (M, D) lie among the real images (N, D), and the reverse: bool (M,), (N,).

    "Among a set" means within the distance of some image of the set to its third nearest neighbor
    (Kynkäänniemi et al., arXiv 1904.06991, §2). The means are precision and recall.
    """
    samples, real = (_checked("precision and recall", features) for features in (samples, real))
    return _lies_among(samples, real), _lies_among(real, samples)


def _lies_among(features: Tensor, others: Tensor) -> Tensor:
    """Which of `features` (N, D) are as near to one of `others` (M, D) as its third nearest: bool (N,)."""
    # the nearest is the image itself
    radii = [torch.cdist(rows, others).kthvalue(NEIGHBORS + 1).values for rows in others.split(ROWS_AT_ONCE)]
    radius = torch.cat(radii)  # (M,)
    return torch.cat(
        [(torch.cdist(rows, others) <= radius).any(dim=1) for rows in features.split(ROWS_AT_ONCE)]
    )


def inception_score(logits: Tensor, splits: int = SPLITS) -> dict[str, float | int]:
    """exp of the mean KL divergence of each image's classes from the mean of all: logits (M, K) -> from 1 to K.

    Returns {"mean", "deviation", "splits"} over parts of the images in a fixed random order, as usual; a
    single split gives a higher value. The classes should be kinds of things.
    """
    result = isc_features_to_metric(_checked("an Inception Score", logits), splits=splits)
    return {"mean": result[KEY_METRIC_ISC_MEAN], "deviation": result[KEY_METRIC_ISC_STD], "splits": splits}


def _checked(figure: str, features: Tensor) -> Tensor:
    """Features (N, D) in float64 on the CPU; raises ValueError where they are not finite."""
    if not features.isfinite().all():
        raise ValueError(f"{figure} got numbers that are not finite")
    return features.detach().cpu().double()


def blur(images: Tensor, radius: float) -> Tensor:
    """Blur images (B, 3, H, W) with a Gaussian, reflected at the edges; radius 0 returns the same images.

    The paper blurs both sets with "a Gaussian kernel of radius r" (arXiv 2102.12092, §3); here the radius is the
    standard deviation in pixels.
    """
    if radius == 0:
        return images
    down, across = (
        torch.from_numpy(gaussian_filter1d(np.eye(size), radius, axis=0, mode="mirror", truncate=BLUR_CUTOFF))
        for size in images.shape[2:]
    )
    return down.to(images) @ images @ across.T.to(images)
