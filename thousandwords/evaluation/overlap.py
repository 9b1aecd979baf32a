"""Near duplicates of training images: the nearest training image of each image, and a threshold.

Like the paper (arXiv 2102.12092, §3.1), whose threshold is conservative: low enough that hardly any image
that training knew is missed. Neighbors are exact but for those within a large set: HNSW (Malkov and Yashunin,
arXiv 1603.09320), built by one thread so that the same images give the same graph, can miss a neighbor.

Axes: N and M images, D features.
"""

import math
from dataclasses import dataclass

import faiss
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from thousandwords.ingest.perceptual_hash import chance_distance

EXACT_IMAGES = 20_000  # up to this number the images of a set are all compared, which takes seconds
ROWS_AT_ONCE = 4096  # bounds the table (rows, rows) of similarities
HNSW_LINKS, HNSW_CANDIDATES = 32, 128  # edges of an image; candidates kept while building and searching
MAX_PAIRED = 1024  # held-out and training images whose pairwise cosines give the distribution of chance
MAX_COSINE = 1 - 1e-7  # Fisher's z of equal images is infinite


@dataclass(frozen=True)
class Overlap:
    """The nearest training image of each image, and which images are near duplicates of it."""

    similarity: Tensor  # (N,) cosine
    index: Tensor  # (N,) of the training image
    threshold: float

    @property
    def is_overlapping(self) -> Tensor:
        """Whether the similarity is above the threshold: (N,) bool."""
        return self.similarity > self.threshold

    @property
    def share(self) -> float:
        """The share of images that have a near duplicate."""
        return float(self.is_overlapping.double().mean())

    def closest(self, count: int) -> list[int]:
        """The images with the nearest training images, nearest first."""
        return self.similarity.argsort(descending=True, stable=True)[:count].tolist()

    def around_threshold(self, count: int) -> list[int]:
        """The images just above and just below the threshold, `count` of each, nearest first."""
        num_above = int(self.is_overlapping.sum())
        return self.closest(num_above + count)[max(0, num_above - count) :]


def nearest(features: Tensor, others: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The most similar of `others` (M, D) to each of `features` (N, D), or without them the most similar other
    one of the same set: cosines (N,), indices (N,)."""
    features, is_same = functional.normalize(features.float(), dim=1), others is None
    if is_same and len(features) > EXACT_IMAGES:
        return _nearest_approximately(features)
    others = features if is_same else functional.normalize(others.float(), dim=1)
    similarity = features.new_full((len(features),), -math.inf)
    index = torch.zeros_like(similarity, dtype=torch.int64)
    for columns in torch.arange(len(others)).split(ROWS_AT_ONCE):
        for rows in torch.arange(len(features)).split(ROWS_AT_ONCE):
            cosines = features[rows] @ others[columns].T
            if is_same:  # an image is not its own neighbor
                cosines[rows[:, None] == columns] = -math.inf
            best, column = cosines.max(dim=1)
            is_nearer = best > similarity[rows]
            similarity[rows] = similarity[rows].where(~is_nearer, best)
            index[rows] = index[rows].where(~is_nearer, columns[column])
    return similarity.clamp(-1, 1), index


def _nearest_approximately(features: Tensor) -> tuple[Tensor, Tensor]:
    """`nearest` for unit vectors (N, D) of one set; a few indices are not those of the very nearest."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        graph = faiss.IndexHNSWFlat(features.shape[1], HNSW_LINKS)
        graph.hnsw.efConstruction = graph.hnsw.efSearch = HNSW_CANDIDATES
        graph.add(features.numpy())
        # (N, 2); the image itself is usually the first, but not if it has copies
        neighbors = torch.from_numpy(graph.search(features.numpy(), 2)[1])
    finally:
        faiss.omp_set_num_threads(threads)
    is_itself = neighbors[:, 0] == torch.arange(len(neighbors))
    index = torch.where(is_itself, neighbors[:, 1], neighbors[:, 0])
    return (features * features[index]).sum(dim=1).clamp(-1, 1), index


def chance_threshold(held_out_features: Tensor, train_features: Tensor) -> float:
    """The cosine above which 1 held-out image in 100 has a training image by chance alone:
    `perceptual_hash.chance_distance` on the scale of Fisher's z, so that the extrapolated tail ends below 1."""
    held_out, training = (
        functional.normalize(features[:: max(1, len(features) // MAX_PAIRED)].float(), dim=1)
        for features in (held_out_features, train_features)
    )
    cosines = held_out @ training.T
    distances = -torch.atanh(cosines.double().clamp(-MAX_COSINE, MAX_COSINE)).flatten().numpy()
    return round(float(np.tanh(-chance_distance(distances, len(train_features)))), 7)
