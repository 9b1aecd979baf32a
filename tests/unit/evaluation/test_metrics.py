"""Best of n, caption match, CLIP score, retrieval, PSNR, codebook use and intervals."""

from itertools import combinations

import numpy as np
import pytest
import torch

from thousandwords.evaluation import metrics
from thousandwords.nn.metrics import codebook_usage, mean_psnr, psnr, top1

GRID = (2, 3, 4, 4)


def seeded() -> np.random.Generator:
    return np.random.default_rng(0)


def without_intervals(block: dict) -> dict:
    return {name: value for name, value in block.items() if not name.endswith("_interval")}


def test_psnr_is_in_decibels_and_its_mean_is_not_that_of_the_errors():
    black, other = torch.zeros(GRID), torch.zeros(GRID)
    other[0], other[1] = 0.1, 1.0  # 20 dB and 0 dB; the mean error would give 2.97 dB
    assert psnr(black, other).tolist() == pytest.approx([20.0, 0.0], abs=1e-5)
    assert psnr(black, black).tolist() == pytest.approx([100.0, 100.0])
    assert mean_psnr(black, other) == pytest.approx(10.0, abs=1e-5)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (torch.full(GRID, 255.0), "found values from 0 to 255: divide bytes by 255"),
        (torch.zeros(1, 3, 4, 4), r"found \(2, 3, 4, 4\) and \(1, 3, 4, 4\)"),
        (torch.full(GRID, torch.nan), "found values from nan"),
    ],
)
def test_psnr_rejects_bytes_and_unequal_shapes(other, message):
    with pytest.raises(ValueError, match=message):
        psnr(torch.zeros(GRID), other)


@pytest.mark.parametrize(
    ("tokens", "used", "perplexity"),
    [
        (range(8), 8, 8.0),  # evenly
        ([3] * 20, 1, 1.0),  # collapsed
        ([0, 0, 0, 1], 2, 0.75**-0.75 * 0.25**-0.25),  # the exponential of the entropy
    ],
)
def test_codebook_use_is_a_count_and_a_perplexity(tokens, used, perplexity):
    assert codebook_usage(torch.tensor(tokens), 8) == pytest.approx(
        {"used": used / 8, "used_words": used, "perplexity": perplexity}
    )


def test_tokens_outside_the_codebook_are_rejected():
    with pytest.raises(ValueError, match=r"run from 0 to 8, outside a codebook of 8 entries"):
        codebook_usage(torch.arange(9), 8)
    with pytest.raises(ValueError, match="at least one token"):
        codebook_usage(torch.zeros(0, 4), 8)


def test_top1_counts_images_nearest_to_their_own_caption_and_shares_ties():
    assert top1([[0.9, 0.1], [0.8, 0.2]]) == 0.5
    assert top1([[0.9, 0.9], [0.1, 0.2]]) == 0.75
    assert top1(np.zeros((4, 4))) == 0.25


def best_by_brute_force(n: int, scores: np.ndarray, quality: np.ndarray) -> float:
    """The mean over prompts and all subsets of n of the quality of the top-scored; ties share their mean."""

    def top(row: np.ndarray, worth: np.ndarray, subset: list[int]) -> float:
        return worth[subset][row[subset] == row[subset].max()].mean()

    subsets = [list(subset) for subset in combinations(range(scores.shape[1]), n)]
    rows = zip(scores, quality, strict=True)
    return float(np.mean([top(row, worth, subset) for row, worth in rows for subset in subsets]))


@pytest.mark.paper("evaluation: best of N")
@pytest.mark.parametrize("n", [1, 2, 5, 6])
@pytest.mark.parametrize("levels", [3, 1000])  # few levels: many ties
def test_best_of_equals_the_mean_over_every_subset(n, levels):
    rng = seeded()
    scores, quality = rng.integers(levels, size=(4, 6)), rng.random((4, 6))
    assert metrics.best_of(n, scores, quality).mean() == pytest.approx(
        best_by_brute_force(n, scores, quality)
    )


def test_a_score_that_is_no_number_is_rejected():
    with pytest.raises(ValueError, match="prompt 1, candidate 0 is not a finite number"):
        metrics.best_of(1, [[0.1, 0.2], [np.nan, 0.2]], np.ones((2, 2)))


@pytest.mark.paper("evaluation: best of N")
def test_a_curve_has_the_powers_of_two_and_the_number_of_candidates():
    assert [metrics.candidate_counts(count) for count in (1, 6, 16)] == [[1], [1, 2, 4, 6], [1, 2, 4, 8, 16]]


def test_match_rates_have_the_layout_of_metrics_json():
    """`all` needs every attribute; `scene` ignores shape and size."""
    scores = [[0.9, 0.1], [0.2, 0.8]]
    right, mixed = [[1, 1], [1, 1]], [[1, 0], [1, 0]]
    matches = {"colour": right, "shape": mixed, "size": right, "relation": right, "background": right}

    rates = metrics.match_rates(scores, matches, 0)

    assert list(rates) == ["prompts", "all", "scene", *matches, "curve"]
    assert rates["prompts"] == 2
    assert (rates["shape"], rates["colour"]) == ({"n1": 0.5, "best": 0.5}, {"n1": 1.0, "best": 1.0})
    assert rates["all"] == {"n1": 0.5, "best": 0.5, "n1_interval": [0.5, 0.5], "best_interval": [0.0, 1.0]}
    assert rates["curve"] == {"n": [1, 2], "all": [0.5, 0.5], "scene": [1.0, 1.0]}


def test_a_clip_score_has_both_ends_and_a_curve_and_is_scaled_with_negative_cosines_as_0():
    figures = metrics.clip_score(np.array([[-0.5, 0.5]]), seed=0)
    assert figures == {
        **{"n1": 0.0, "n1_interval": [0.0, 0.0], "best": 0.5, "best_interval": [0.5, 0.5]},
        "curve": {"n": [1, 2], "score": [0.0, 0.5]},
        "scaled": {"n1": 25.0, "n1_interval": [25.0, 25.0], "best": 50.0, "best_interval": [50.0, 50.0]},
    }


@pytest.mark.parametrize(
    ("similarity", "expected"),
    [
        # the own caption is first, third, and equally near as two others
        ([[0.9, 0.1, 0.2], [0.8, 0.5, 0.6], [0.3, 0.3, 0.3]], [4 / 9, 5 / 9, 1]),
        (np.eye(20), [1, 1, 1]),
        (np.zeros((20, 20)), [0.05, 0.1, 0.15]),
    ],
)
def test_recall_counts_how_often_the_own_column_is_among_the_nearest_and_shares_ties(similarity, expected):
    recall = metrics.recall_at(np.array(similarity), 0, (1, 2, 3))
    assert list(without_intervals(recall).values()) == pytest.approx(expected)


def test_a_caption_found_among_some_is_the_mean_over_every_choice_of_the_others():
    similarity = np.random.default_rng(0).random((6, 6)).round(1)
    expected = []
    for row, values in enumerate(similarity):
        others = combinations([value for column, value in enumerate(values) if column != row], 3)
        expected.append(np.mean([max(chosen) < values[row] for chosen in others]))

    found = metrics.found_among(similarity, 4, 0)

    assert found["found"] == pytest.approx(np.mean(expected))
    assert (found["among"], found["chance"]) == (4, 0.25)
    assert metrics.found_among(similarity, 32, 0)["among"] == 6


def test_retrieval_has_captions_of_images_and_images_of_captions():
    images, captions = torch.eye(3)[[0, 1, 2, 0]], torch.eye(3)[[0, 1, 2, 1]]
    recall = metrics.retrieval(images, captions, 0)
    # the last image is red and its caption says green: its nearest caption is the first's, its caption's nearest image the second
    each = {"r1": 0.625, "r5": 1.0, "r10": 1.0}
    assert recall["pictures"] == 4
    for name in ("captions_of_pictures", "pictures_of_captions"):
        assert without_intervals(recall[name]) == each


def test_an_interval_holds_the_mean_repeats_with_its_seed_and_agrees_with_the_normal_approximation():
    values = seeded().random(400)
    low, high = metrics.bootstrap_interval(values, seeded())
    assert low < values.mean() < high and [low, high] == metrics.bootstrap_interval(values, seeded())
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    assert metrics.bootstrap_interval([1.0, 1.0], seeded()) == [1.0, 1.0]
