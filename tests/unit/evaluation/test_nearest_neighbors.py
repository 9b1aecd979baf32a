"""The nearest other image: exact against a loop, approximate against exact, and the library that may be missing."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.nn import functional

from tests.helpers.tiny_models import rng
from thousandwords.core.errors import UserError
from thousandwords.evaluation import nearest_neighbors


def features(count: int, width: int = 16, seed: int = 0) -> torch.Tensor:
    return functional.normalize(torch.randn(count, width, generator=rng(seed)), dim=1)


def planted(count: int) -> torch.Tensor:
    """A tenth of the images have a near copy, and two have an equal one."""
    first = features(count)
    near = first[: count // 10] + 0.01 * features(count // 10, seed=1)
    return functional.normalize(torch.cat([first, near, first[-2:]]), dim=1)


def test_the_nearest_other_image_equals_that_of_a_loop(monkeypatch):
    monkeypatch.setattr(nearest_neighbors, "ROWS_AT_ONCE", 7)
    vectors = features(30) * torch.linspace(0.1, 9, 30)[:, None]  # the length of a vector does not matter
    similarity, index = nearest_neighbors.nearest_other(vectors)
    for row in range(30):
        cosines = [
            functional.cosine_similarity(vectors[row], vectors[other], dim=0) if other != row else -2
            for other in range(30)
        ]
        assert index[row] == max(range(30), key=cosines.__getitem__)
        assert similarity[row] == pytest.approx(float(max(cosines)), abs=1e-6)


def test_copies_find_each_other_and_no_image_finds_itself():
    similarity, index = nearest_neighbors.nearest_other(planted(100))
    assert index[:10].tolist() == list(range(100, 110)) and index[98:100].tolist() == [110, 111]
    assert (index != torch.arange(112)).all() and similarity[[98, 110]].tolist() == pytest.approx([1, 1])


def test_the_approximate_search_misses_hardly_any_neighbor_and_invents_none(monkeypatch):
    pytest.importorskip("faiss")
    vectors = planted(2000)
    expected, _ = nearest_neighbors.nearest_other(vectors)
    monkeypatch.setattr(nearest_neighbors, "EXACT_IMAGES", 100)

    similarity, index = nearest_neighbors.nearest_other(vectors)

    torch.testing.assert_close(similarity, functional.cosine_similarity(vectors, vectors[index], dim=1))
    assert (index != torch.arange(len(vectors))).all() and (similarity <= expected + 1e-6).all()
    assert (similarity > expected - 1e-6).double().mean() >= 0.99
    assert (similarity[:200] > expected[:200] - 1e-6).double().mean() >= 0.99  # the planted ones
    again, same = nearest_neighbors.nearest_other(vectors)
    assert (again == similarity).all() and (same == index).all()


def test_a_missing_library_is_named_with_its_fix(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    nearest_neighbors.require_faiss(20_000, "evaluation.overlap_images")
    with pytest.raises(
        UserError,
        match="^evaluation.overlap_images asks for neighbors among 20001 images; more than 20000 "
        "need the package faiss, which is not installed. Run: pip install 'faiss-cpu>=1.15,<2', "
        "or lower evaluation.overlap_images$",
    ):
        nearest_neighbors.require_faiss(20_001, "evaluation.overlap_images")


@pytest.mark.parametrize("shape", [(1, 4), (0, 4), (5,)])
def test_too_few_images_are_rejected(shape):
    with pytest.raises(ValueError, match="features \\(N, D\\) of 2 or more images; found"):
        nearest_neighbors.nearest_other(torch.zeros(shape))
