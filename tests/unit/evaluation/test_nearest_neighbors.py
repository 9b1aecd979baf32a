"""The nearest other picture: exact against a loop, approximate against exact, and the library that may be missing."""
from __future__ import annotations

import sys

import pytest
import torch
from torch.nn import functional

from tests.tiny import rng
from thousandwords import neighbours
from thousandwords.errors import UserError


def features(count: int, width: int = 16, seed: int = 0) -> torch.Tensor:
    return functional.normalize(torch.randn(count, width, generator=rng(seed)), dim=1)


def planted(count: int) -> torch.Tensor:
    """A tenth of the pictures have a near copy, and two have an equal one."""
    first = features(count)
    near = first[: count // 10] + 0.01 * features(count // 10, seed=1)
    return functional.normalize(torch.cat([first, near, first[-2:]]), dim=1)


def test_the_nearest_other_is_that_of_a_loop(monkeypatch):
    monkeypatch.setattr(neighbours, "ROWS_AT_ONCE", 7)
    some = features(30) * torch.linspace(0.1, 9, 30)[:, None]    # how long a vector is does not matter
    similarity, index = neighbours.nearest_other(some)
    for row in range(30):
        cosines = [functional.cosine_similarity(some[row], some[other], dim=0) if other != row else -2 for other in range(30)]
        assert index[row] == max(range(30), key=cosines.__getitem__)
        assert similarity[row] == pytest.approx(float(max(cosines)), abs=1e-6)


def test_copies_find_each_other_and_none_finds_itself():
    similarity, index = neighbours.nearest_other(planted(100))
    assert index[:10].tolist() == list(range(100, 110)) and index[98:100].tolist() == [110, 111]
    assert (index != torch.arange(112)).all() and similarity[[98, 110]].tolist() == pytest.approx([1, 1])


def test_hardly_a_neighbour_is_missed_and_none_is_invented(monkeypatch):
    pytest.importorskip("faiss")
    some = planted(2000)
    wanted, _ = neighbours.nearest_other(some)
    monkeypatch.setattr(neighbours, "EXACT_PICTURES", 100)

    similarity, index = neighbours.nearest_other(some)

    torch.testing.assert_close(similarity, functional.cosine_similarity(some, some[index], dim=1))
    assert (index != torch.arange(len(some))).all() and (similarity <= wanted + 1e-6).all()
    assert (similarity > wanted - 1e-6).double().mean() >= 0.99
    assert (similarity[:200] > wanted[:200] - 1e-6).double().mean() >= 0.99    # the planted ones
    again, same = neighbours.nearest_other(some)
    assert (again == similarity).all() and (same == index).all()


def test_a_missing_library_is_named_with_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    neighbours.check(20_000, "evaluation.overlap_pictures")
    with pytest.raises(UserError, match="^evaluation.overlap_pictures asks for neighbours among 20001 pictures; more than 20000 "
                                        "need the package faiss, which is not installed. Run: pip install 'faiss-cpu>=1.15,<2', "
                                        "or lower evaluation.overlap_pictures$"):
        neighbours.check(20_001, "evaluation.overlap_pictures")


@pytest.mark.parametrize("shape", [(1, 4), (0, 4), (5,)])
def test_too_few_pictures_have_no_others(shape):
    with pytest.raises(ValueError, match="features \\(N, D\\) of 2 or more pictures; found"):
        neighbours.nearest_other(torch.zeros(shape))
