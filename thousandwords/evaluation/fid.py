"""Do drawn pictures look like real ones, and were the real ones seen in training: pure functions on features and pictures.

The Inception Score (Salimans et al., arXiv 1606.03498, §4) and the kernel distance are torch-fidelity's, which the field compares
itself with; the Fréchet distance (Heusel et al., arXiv 1706.08500, §3) and precision and recall agree with its own to the seventh
digit, and tell more: the distance in a hundredth of the time, so that it can have an interval, and the rest picture by picture.
The paper (arXiv 2102.12092, §3) also blurs both sides, and tells the held-out pictures apart that training has all but seen.
Which network gives the features or the classes is the caller's matter (`features`): only Inception's pool features make a
Fréchet distance an FID, a kernel distance a KID.

Axes: N and M pictures, D features, K classes.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

RADII = range(9)    # of the paper's blur, in pixels; 0 leaves the pictures as they are
ROWS_AT_ONCE = 4096    # bounds the table (rows, rows) of similarities
SUBSETS, MOST_IN_SUBSET = 100, 1000    # of a kernel distance, as KID is usually taken
NEIGHBOURS = 3    # of precision and recall, the paper's
ROUNDS = 50    # sets drawn for the interval of a Fréchet distance: their deviation is known to a tenth
TWO_SIDED_95 = 1.96    # standard deviations of a Gaussian
SPLITS = 10    # of an Inception Score, as is usual
REACH = 4    # standard deviations after which a Gaussian is cut


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """How far apart two sets lie, each taken as one Gaussian: (N, D), (M, D) -> |m_a - m_b|² + Tr(S_a + S_b - 2 √(S_a S_b)).

    In float64. 0 for equal means and covariances; small sets, and most of all N <= D, read too high. Raises ValueError.
    """
    sides = [_checked("a Fréchet distance", features, least=2) for features in (features_a, features_b)]
    _check_widths("a Fréchet distance", *sides)
    return _distance(*sides)


def frechet_interval(features_a: Tensor, features_b: Tensor, groups_a: Sequence[int], rng: np.random.Generator) -> list[float]:
    """Where the distance of (N, D) and (M, D) would fall for other such pictures: 95 %, about the distance itself.

    Pictures of one of `groups_a` (N,), such as those drawn for one caption, are taken or left together. A set that is drawn from
    a set holds some pictures twice, and so reads too high; only how far such distances scatter is used. Where there are about as
    many pictures as features it is too wide: on this pipeline's own CLIP 1.2 times at 96 pictures, 1.7 times at 384.
    """
    sides = [_checked("a Fréchet distance", features, least=2) for features in (features_a, features_b)]
    members = [np.flatnonzero(np.asarray(groups_a) == group) for group in dict.fromkeys(groups_a)]
    found = []
    for _ in range(ROUNDS):
        rows_a = np.concatenate([members[one] for one in rng.integers(len(members), size=len(members))])
        rows_b = rng.integers(len(sides[1]), size=len(sides[1]))
        found.append(_distance(sides[0][torch.from_numpy(rows_a)], sides[1][torch.from_numpy(rows_b)]))
    reach, distance = TWO_SIDED_95 * float(np.std(found, ddof=1)), _distance(*sides)
    return [max(0.0, distance - reach), distance + reach]


def _distance(a: Tensor, b: Tensor) -> float:
    """The trace of √(S_a S_b) is the sum of the singular values of A Bᵀ, where S_a = Aᵀ A and S_b = Bᵀ B.

    So a set of few pictures costs by its pictures and not by its features: 384 of Inception's 2,048 take 0.1 s for 9 s.
    """
    means = [side.mean(dim=0) for side in (a, b)]
    roots = [(side - mean) / math.sqrt(max(1, len(side) - 1)) for side, mean in zip((a, b), means, strict=True)]
    spread = sum(float(root.square().sum()) for root in roots)    # the traces
    narrow = [torch.linalg.qr(root, mode="r").R if len(root) > root.shape[1] else root for root in roots]
    together = float(torch.linalg.svdvals(narrow[0] @ narrow[1].T).sum())
    return max(0.0, float((means[0] - means[1]).square().sum()) + spread - 2 * together)    # rounding goes below 0


def kernel_distance(features_a: Tensor, features_b: Tensor, seed: int) -> dict[str, float | int]:
    """The squared MMD of sets (N, D), (M, D) by the cubic kernel (x·y / D + 1)³: {"mean", "deviation", "subsets", "size"}.

    The mean over random subsets of `size` pictures of either side, `SUBSETS` of them; with Inception's features it is KID
    (Binkowski et al., arXiv 1801.01401). Unbiased: few pictures read no higher than many, equal sets about 0. In the precision of
    the features: torch-fidelity's own digits are those of float32, and sets that are much alike want float64. Raises ValueError.
    """
    for features in (features_a, features_b):
        _checked("a kernel distance", features, least=4)
    sides = [features.detach().cpu() for features in (features_a, features_b)]
    _check_widths("a kernel distance", *sides)
    size = min(MOST_IN_SUBSET, *(len(side) // 2 for side in sides))    # halves, so that subsets differ
    found = kid_features_to_metric(
        *sides, kid_subsets=SUBSETS, kid_subset_size=size, kid_kernel="poly", kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1.0, rng_seed=seed, verbose=False,
    )    # fmt: skip
    return {"mean": found[KEY_METRIC_KID_MEAN], "deviation": found[KEY_METRIC_KID_STD], "subsets": SUBSETS, "size": size}


def precision_recall(drawn: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Which drawn pictures (M, D) are among the real ones (N, D), and which real ones among the drawn: bool (M,), (N,).

    "Among" is within the distance of some picture of that side to its third nearest (Kynkäänniemi et al., arXiv 1904.06991, §2).
    The means are precision and recall. Raises ValueError.
    """
    sides = [_checked("precision and recall", features, least=NEIGHBOURS + 1) for features in (drawn, real)]
    _check_widths("precision and recall", *sides)
    return _among(*sides), _among(*reversed(sides))


def _among(rows: Tensor, others: Tensor) -> Tensor:
    """Which rows (N, D) are as near to one of `others` (M, D) as that one is to its third nearest: bool (N,)."""
    third = NEIGHBOURS + 1    # the first is the picture itself
    reach = torch.cat([torch.cdist(part, others).kthvalue(third).values for part in others.split(ROWS_AT_ONCE)])    # (M,)
    return torch.cat([(torch.cdist(part, others) <= reach).any(dim=1) for part in rows.split(ROWS_AT_ONCE)])


def inception_score(logits: Tensor, splits: int = SPLITS) -> dict[str, float | int]:
    """exp of the mean KL of each picture's classes from those of all: (N, K) -> 1, all alike, to K, sure and evenly spread.

    {"mean", "deviation", "splits"} over parts of the pictures in a fixed random order, as is usual; one split takes all at once
    and reads higher. It wants a classifier whose classes are kinds of things. Raises ValueError.
    """
    logits = _checked("an Inception Score", logits, least=splits)
    found = isc_features_to_metric(logits, splits=splits)
    return {"mean": found[KEY_METRIC_ISC_MEAN], "deviation": found[KEY_METRIC_ISC_STD], "splits": splits}


def _checked(what: str, rows: Tensor, least: int) -> Tensor:
    """Rows (N, D) in float64 on the CPU, at least so many and all finite."""
    if rows.ndim != 2 or len(rows) < least:
        raise ValueError(f"{what} wants rows (N, D) of {least} or more pictures; found {tuple(rows.shape)}")
    if not rows.isfinite().all():
        raise ValueError(f"{what} was given numbers that are not finite")
    return rows.detach().cpu().double()


def _check_widths(what: str, a: Tensor, b: Tensor) -> None:
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{what} wants features of one width; found {a.shape[1]} and {b.shape[1]}")


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
