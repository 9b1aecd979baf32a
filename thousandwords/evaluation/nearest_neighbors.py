"""The nearest other picture of each of many, by an embedding: exact among some, approximate (faiss) among very many.

Approximate is HNSW (Malkov and Yashunin, arXiv 1603.09320) with whole vectors, built by one thread so that the same pictures give
the same graph. It can miss a neighbour, never invent one: similarities are those of the embeddings themselves. Among others than
themselves pictures are sought by `fidelity.nearest`, whose time grows with their number only, and which stays exact.

Axes: N pictures, D features.
"""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from thousandwords.errors import UserError

EXACT_PICTURES = 20_000    # up to here each is compared with each: seconds
ROWS_AT_ONCE = 2048    # bounds the table (rows, N) of similarities
LINKS, EFFORT = 32, 128    # of HNSW: edges of a picture, and candidates that building and searching look at
REQUIREMENT = "faiss-cpu>=1.15,<2"


def check(count: int, name: str) -> None:
    """UserError where so many pictures, as the setting `name` asks for, need a library that is missing."""
    if count > EXACT_PICTURES:
        try:
            import faiss  # noqa: F401
        except ImportError as error:
            raise UserError(f"{name} asks for neighbours among {count} pictures; more than {EXACT_PICTURES} need the package "
                            f"faiss, which is not installed. Run: pip install '{REQUIREMENT}', or lower {name}") from error


def nearest_other(features: Tensor) -> tuple[Tensor, Tensor]:
    """The most alike other picture of each, features (N, D): cosines (N,), indices (N,). Raises ValueError."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"others are looked for among features (N, D) of 2 or more pictures; found {tuple(features.shape)}")
    features = functional.normalize(features.detach().cpu().float(), dim=1)
    index = exact(features) if len(features) <= EXACT_PICTURES else approximate(features)
    return (features * features[index]).sum(dim=1).clamp(-1, 1), index


def exact(features: Tensor) -> Tensor:
    """(N, D) of length 1 -> indices (N,); each with each."""
    found = []
    for start in range(0, len(features), ROWS_AT_ONCE):
        table = features[start : start + ROWS_AT_ONCE] @ features.T
        table.diagonal(offset=start).fill_(-torch.inf)
        found.append(table.argmax(dim=1))
    return torch.cat(found)


def approximate(features: Tensor) -> Tensor:
    """(N, D) of length 1 -> indices (N,), a few of which are not the very nearest."""
    import faiss

    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        graph = faiss.IndexHNSWFlat(features.shape[1], LINKS)
        graph.hnsw.efConstruction = graph.hnsw.efSearch = EFFORT
        graph.add(features.numpy())
        found = torch.from_numpy(graph.search(features.numpy(), 2)[1])    # (N, 2); itself is one of them, or has copies
    finally:
        faiss.omp_set_num_threads(threads)
    is_itself = found[:, 0] == torch.arange(len(found))
    return torch.where(is_itself, found[:, 1], found[:, 0])
