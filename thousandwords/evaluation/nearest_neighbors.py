"""The nearest other image of each image in a set, by features: exact for small sets, approximate (faiss) for
large ones.

Approximate is HNSW (Malkov and Yashunin, arXiv 1603.09320) with uncompressed vectors, built by one thread so
that the same images give the same graph. It can miss a neighbor, but never invents one: similarities are
those of the features themselves. For neighbors in another set use `fid.nearest`: its time grows linearly with
the set, so it stays exact.

Axes: N images, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from thousandwords.core.errors import UserError

EXACT_IMAGES = 20_000  # up to this number each image is compared with each, which takes seconds
ROWS_AT_ONCE = 2048  # bounds the table (rows, N) of similarities
HNSW_LINKS, HNSW_CANDIDATES = 32, 128  # edges of an image; candidates kept while building and searching
REQUIREMENT = "faiss-cpu>=1.15,<2"


def require_faiss(num_images: int, setting: str) -> None:
    """Raise UserError where the number of images, from this setting, needs faiss and it is not installed."""
    if num_images > EXACT_IMAGES:
        try:
            import faiss  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"{setting} asks for neighbors among {num_images} images; more than {EXACT_IMAGES} need the package "
                f"faiss, which is not installed. Run: pip install '{REQUIREMENT}', or lower {setting}"
            ) from error


def nearest_other(features: Tensor) -> tuple[Tensor, Tensor]:
    """The most similar other image of each, features (N, D): cosines (N,), indices (N,). Raises
    ValueError."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(
            f"nearest other images need features (N, D) of 2 or more images; found {tuple(features.shape)}"
        )
    features = functional.normalize(features.detach().cpu().float(), dim=1)
    index = exact(features) if len(features) <= EXACT_IMAGES else approximate(features)
    return (features * features[index]).sum(dim=1).clamp(-1, 1), index


def exact(features: Tensor) -> Tensor:
    """Unit vectors (N, D) -> indices (N,) of the nearest others, by comparing each with each."""
    indices = []
    for start in range(0, len(features), ROWS_AT_ONCE):
        similarity = features[start : start + ROWS_AT_ONCE] @ features.T
        similarity.diagonal(offset=start).fill_(-torch.inf)
        indices.append(similarity.argmax(dim=1))
    return torch.cat(indices)


def approximate(features: Tensor) -> Tensor:
    """Unit vectors (N, D) -> indices (N,), a few of which are not the very nearest."""
    import faiss

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
    return torch.where(is_itself, neighbors[:, 1], neighbors[:, 0])
