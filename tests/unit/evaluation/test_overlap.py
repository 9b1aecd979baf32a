"""Nearest neighbors against a loop and planted answers, and the threshold of near duplicates."""

import pytest
import torch
from torch.nn import functional

from tests.helpers.tiny_models import rng
from thousandwords.evaluation import overlap
from thousandwords.evaluation.overlap import Overlap, chance_threshold, nearest


def features(count: int, width: int = 16, seed: int = 0) -> torch.Tensor:
    return functional.normalize(torch.randn(count, width, generator=rng(seed)), dim=1)


def planted(count: int) -> torch.Tensor:
    """A tenth of the images have a near copy, and two have an equal one."""
    first = features(count)
    near = first[: count // 10] + 0.01 * features(count // 10, seed=1)
    return functional.normalize(torch.cat([first, near, first[-2:]]), dim=1)


@pytest.mark.parametrize("rows_at_once", [3, 100])
@pytest.mark.parametrize("is_same_set", [False, True])
def test_neighbors_are_those_of_a_table_of_cosines_for_any_length_and_batch_size(
    rows_at_once, is_same_set, monkeypatch
):
    vectors = features(11, width=4) * torch.linspace(0.1, 9, 11)[:, None]
    others = vectors if is_same_set else features(23, width=4, seed=2)
    table = functional.cosine_similarity(vectors[:, None], others[None], dim=2)
    if is_same_set:
        table.fill_diagonal_(-2)

    monkeypatch.setattr(overlap, "ROWS_AT_ONCE", rows_at_once)
    similarity, index = nearest(vectors, None if is_same_set else others)

    assert index.tolist() == table.argmax(dim=1).tolist()
    torch.testing.assert_close(similarity, table.max(dim=1).values)


def test_the_approximate_search_misses_hardly_any_neighbor_and_invents_none(monkeypatch):
    vectors = planted(2000)
    expected, _ = nearest(vectors)
    monkeypatch.setattr(overlap, "EXACT_IMAGES", 100)

    similarity, index = nearest(vectors)

    torch.testing.assert_close(similarity, functional.cosine_similarity(vectors, vectors[index], dim=1))
    assert (index != torch.arange(len(vectors))).all() and (similarity <= expected + 1e-6).all()
    for part in (slice(None), slice(200)):  # all, and the planted ones
        assert (similarity[part] > expected[part] - 1e-6).double().mean() >= 0.99
    assert nearest(vectors)[1].equal(index)


@pytest.mark.parametrize(
    ("threshold", "count", "expected"), [(0.8, 1, [5, 2]), (0.8, 9, [1, 3, 5, 2, 4, 0]), (1.0, 2, [1, 3])]
)
def test_around_a_threshold_are_the_last_above_and_the_first_below(threshold, count, expected):
    similarity = torch.tensor([0.2, 0.99, 0.7, 0.95, 0.4, 0.9])
    found = Overlap(similarity, torch.zeros(6, dtype=torch.int64), threshold)
    assert found.around_threshold(count) == expected


def test_the_chance_threshold_finds_planted_near_duplicates_and_hardly_any_other_image():
    training = features(2000, 24, seed=1)
    new = features(500, 24, seed=2)
    near_duplicates = functional.normalize(training[:100] + 0.02 * features(100, 24, seed=3), dim=1)

    threshold = chance_threshold(torch.cat([new, near_duplicates]), training)

    assert 0.7 < threshold < 0.98
    assert Overlap(*nearest(near_duplicates, training), threshold).share == 1.0
    assert Overlap(*nearest(new, training), threshold).share <= 0.02
    # near duplicates do not change it
    assert threshold == pytest.approx(chance_threshold(new, training), abs=0.03)
