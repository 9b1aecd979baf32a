"""PSNR, codebook use, best of n, caption match, votes and intervals."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch

from thousandwords.evaluation.metrics import (
    best_of,
    best_of_by_prompt,
    bootstrap_interval,
    candidate_counts,
    majority,
    match_rates,
    score_rates,
    top_weights,
    with_summaries,
)
from thousandwords.nn import metrics

GRID = (2, 3, 4, 4)


def seeded() -> np.random.Generator:
    return np.random.default_rng(0)


def best_by_brute_force(n: int, scores: np.ndarray, quality: np.ndarray) -> float:
    """The mean over prompts and all subsets of n of the quality of the top-scored; ties share their mean."""

    def top(row: np.ndarray, worth: np.ndarray, subset: tuple[int, ...]) -> float:
        subset = np.array(subset)
        return worth[subset][row[subset] == row[subset].max()].mean()

    return float(
        np.mean(
            [
                top(row, worth, subset)
                for row, worth in zip(scores, quality, strict=True)
                for subset in combinations(range(len(row)), n)
            ]
        )
    )


def test_psnr_is_twenty_decibels_for_an_error_of_a_tenth():
    black, dark = torch.zeros(GRID), torch.full(GRID, 0.1)

    assert metrics.psnr(black, dark).tolist() == pytest.approx([20.0, 20.0])
    assert metrics.psnr(black, black).tolist() == pytest.approx([100.0, 100.0])


def test_mean_psnr_averages_decibels_and_not_errors():
    black, other = torch.zeros(GRID), torch.zeros(GRID)
    other[0], other[1] = 0.1, 1.0  # 20 dB and 0 dB; the mean error would give 2.97 dB

    assert metrics.mean_psnr(black, other) == pytest.approx(10.0, abs=1e-5)


def test_psnr_rejects_bytes_and_unequal_shapes():
    with pytest.raises(ValueError, match=r"found values from 0 to 255: divide bytes by 255"):
        metrics.psnr(torch.zeros(GRID), torch.full(GRID, 255.0))
    with pytest.raises(ValueError, match=r"found \(2, 3, 4, 4\) and \(1, 3, 4, 4\)"):
        metrics.psnr(torch.zeros(GRID), torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="found values from nan"):
        metrics.psnr(torch.zeros(GRID), torch.full(GRID, torch.nan))


def test_a_codebook_used_evenly_has_its_size_as_perplexity():
    assert metrics.codebook_usage(torch.arange(8).view(2, 4), 8) == pytest.approx(
        {"used": 1.0, "used_words": 8, "perplexity": 8.0}
    )


def test_a_collapsed_codebook_has_perplexity_one():
    assert metrics.codebook_usage(torch.full((5, 4), 3), 8) == pytest.approx(
        {"used": 0.125, "used_words": 1, "perplexity": 1.0}
    )


def test_perplexity_is_the_exponential_of_the_entropy():
    usage = metrics.codebook_usage(torch.tensor([0, 0, 0, 1]), 4)

    assert usage["perplexity"] == pytest.approx(0.75**-0.75 * 0.25**-0.25)
    assert metrics.codebook_counts(torch.tensor([0, 0, 0, 1]), 4).tolist() == [3, 1, 0, 0]


def test_tokens_outside_the_codebook_are_rejected():
    with pytest.raises(ValueError, match=r"run from 0 to 8, outside a codebook of 8 entries"):
        metrics.codebook_usage(torch.arange(9), 8)
    with pytest.raises(ValueError, match="at least one token"):
        metrics.codebook_usage(torch.zeros(0, 4), 8)


def test_the_best_of_two_among_three_is_the_first_twice_in_three():
    assert top_weights(2, 3).tolist() == pytest.approx([2 / 3, 1 / 3, 0])


@pytest.mark.parametrize("n", [1, 2, 7, 32, 511, 512])
def test_weights_of_the_ranks_sum_to_one(n):
    weights = top_weights(n, 512)

    assert weights.sum() == pytest.approx(1)
    assert weights[0] == pytest.approx(n / 512)
    assert (np.diff(weights) <= 0).all()
    assert weights[1] == pytest.approx(comb(510, n - 1) / comb(512, n))


@pytest.mark.paper("evaluation: best of N")
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("levels", [3, 1000])  # few levels: many ties
def test_best_of_equals_the_mean_over_every_subset(n, levels):
    rng = seeded()
    scores, quality = rng.integers(levels, size=(4, 6)), rng.random((4, 6))

    assert best_of(n, scores, quality) == pytest.approx(best_by_brute_force(n, scores, quality))


def test_best_of_one_is_the_mean_and_best_of_all_the_top_scored():
    scores, is_right = [[0.1, 0.3, 0.2], [0.9, 0.5, 0.7]], [[True, False, True], [True, True, False]]

    assert best_of(1, scores, is_right) == pytest.approx(4 / 6)
    assert best_of(3, scores, is_right) == pytest.approx(1 / 2)
    assert best_of_by_prompt(3, scores, is_right).tolist() == [0, 1]


@pytest.mark.paper("evaluation: best of N")
def test_more_candidates_never_hurt_when_the_score_is_the_quality():
    scores = seeded().normal(size=(5, 16))

    curve = [best_of(n, scores, scores) for n in range(1, 17)]

    assert (np.diff(curve) > 0).all()


def test_best_of_rejects_tables_that_it_cannot_rank():
    with pytest.raises(ValueError, match="best of 4 of 3 candidates was requested"):
        best_of(4, np.ones((2, 3)), np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"found \(2, 3\) and \(2, 4\)"):
        best_of(1, np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(ValueError, match="prompt 1, candidate 0 is not a finite number"):
        best_of(1, [[0.1, 0.2], [np.nan, 0.2]], np.ones((2, 2)))


@pytest.mark.paper("evaluation: best of N")
def test_a_curve_has_the_powers_of_two_and_the_number_of_candidates():
    assert candidate_counts(1) == [1]
    assert candidate_counts(6) == [1, 2, 4, 6]
    assert candidate_counts(16) == [1, 2, 4, 8, 16]


def test_all_needs_every_attribute_and_scene_ignores_shape_and_size():
    matches = {
        "colour": [[1, 1, 0]],
        "shape": [[1, 0, 1]],
        "size": [[1, 1, 1]],
        "relation": [[1, 1, 1]],
        "background": [[1, 1, 1]],
    }

    tables = with_summaries(matches)

    assert tables["all"].tolist() == [[True, False, False]]
    assert tables["scene"].tolist() == [[True, True, False]]
    with pytest.raises(ValueError, match="lacks the attribute relation"):
        with_summaries({"colour": [[1]], "background": [[1]]})


def test_match_rates_have_the_layout_of_metrics_json():
    scores = [[0.9, 0.1], [0.2, 0.8]]
    right, mixed = [[1, 1], [1, 1]], [[1, 0], [1, 0]]
    matches = {"colour": mixed, "shape": right, "size": right, "relation": right, "background": right}

    rates = match_rates(scores, matches, seeded())

    assert list(rates) == ["prompts", "all", "scene", *matches, "curve"]
    assert rates["prompts"] == 2
    assert rates["colour"] == {"n1": 0.5, "best": 0.5}
    assert rates["shape"] == {"n1": 1.0, "best": 1.0}
    assert rates["all"] == {"n1": 0.5, "best": 0.5, "n1_interval": [0.5, 0.5], "best_interval": [0.0, 1.0]}
    assert rates["curve"] == {"n": [1, 2], "all": [0.5, 0.5], "scene": [0.5, 0.5]}


def test_score_rates_hold_both_ends_and_a_curve():
    rates = score_rates([[0.1, 0.3], [0.2, 0.4]], seeded())

    assert rates["n1"] == pytest.approx(0.25)
    assert rates["best"] == pytest.approx(0.35)
    assert rates["curve"] == {"n": [1, 2], "score": pytest.approx([0.25, 0.35])}


def test_top1_counts_images_nearest_to_their_own_caption_and_shares_ties():
    assert metrics.top1([[0.9, 0.1], [0.8, 0.2]]) == 0.5
    assert metrics.top1([[0.9, 0.9], [0.1, 0.2]]) == 0.75
    assert metrics.top1(np.zeros((4, 4))) == 0.25


def test_an_interval_holds_the_mean_repeats_with_its_seed_and_narrows_with_more_prompts():
    few, many = seeded().random(20), seeded().random(2000)

    low, high = bootstrap_interval(few, seeded())
    narrow_low, narrow_high = bootstrap_interval(many, seeded())

    assert low < few.mean() < high
    assert [low, high] == bootstrap_interval(few, seeded())
    assert narrow_high - narrow_low < (high - low) / 5


def test_an_interval_agrees_with_the_normal_approximation():
    values = seeded().random(400)

    low, high = bootstrap_interval(values, seeded())

    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)


@pytest.mark.paper("evaluation: human study")
def test_a_majority_is_more_than_half_of_the_raters():
    votes = np.array([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], dtype=bool)

    result = majority(votes, seeded())

    assert result["share"] == 0.5
    assert result["interval"] == bootstrap_interval([1, 0, 1, 0], seeded())
    assert majority(np.ones((3, 1), dtype=bool), seeded()) == {"share": 1.0, "interval": [1.0, 1.0]}


def test_votes_that_could_tie_or_are_not_boolean_are_rejected():
    with pytest.raises(
        ValueError, match="a majority of 4 raters can end in a tie; use an odd number, like the paper's 5"
    ):
        majority(np.ones((2, 4), dtype=bool), seeded())
    with pytest.raises(ValueError, match=r"true and false; found float64 \(2, 3\)"):
        majority(np.full((2, 3), 0.5), seeded())
    with pytest.raises(ValueError, match=r"found bool \(0, 5\)"):
        majority(np.zeros((0, 5), dtype=bool), seeded())
