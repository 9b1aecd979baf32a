"""Fréchet distance, Inception Score, blur and neighbours against closed forms, references and planted answers."""
from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_prc import calculate_precision_recall_full

from tests.tiny import pictures, rng
from thousandwords import fidelity


def gaussian(count: int, width: int, seed: int = 0) -> torch.Tensor:
    """Correlated features (count, width), float64."""
    mix = torch.randn(width, width, generator=rng(seed + 100), dtype=torch.float64)
    return torch.randn(count, width, generator=rng(seed), dtype=torch.float64) @ mix


def whitened(count: int, width: int, seed: int = 0) -> torch.Tensor:
    """Features (count, width) of mean 0 and covariance 1, exactly."""
    centred = gaussian(count, width, seed) - gaussian(count, width, seed).mean(dim=0)
    return torch.linalg.qr(centred).Q * math.sqrt(count - 1)


# --- Fréchet distance ------------------------------------------------------------------------------------------------


def test_a_set_is_at_no_distance_from_itself_in_whatever_order():
    features = gaussian(50, 6)

    assert fidelity.frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    assert fidelity.frechet_distance(features, features.flip(0)) == pytest.approx(0, abs=1e-9)


def test_a_shift_is_at_its_squared_length():
    features, shift = gaussian(50, 3), torch.tensor([1.0, -2.0, 2.0])

    assert fidelity.frechet_distance(features, features + shift) == pytest.approx(9.0)


def test_diagonal_covariances_are_apart_by_the_squares_of_their_deviations():
    unit = whitened(40, 3)

    distance = fidelity.frechet_distance(unit * torch.tensor([1.0, 2.0, 3.0]), unit * torch.tensor([4.0, 2.0, 1.0]))

    assert distance == pytest.approx(3.0**2 + 0.0**2 + 2.0**2)


def test_the_distance_of_one_feature_is_that_of_means_and_deviations():
    a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [7.0]])    # means 1, 4; variances 2, 18

    assert fidelity.frechet_distance(a, b) == pytest.approx(3**2 + (math.sqrt(18) - math.sqrt(2)) ** 2)


@pytest.mark.parametrize(("count", "width"), [(60, 8), (6, 8)])    # the second has covariances without full rank
def test_the_distance_is_that_of_a_matrix_square_root(count, width):
    a, b = gaussian(count, width, seed=1), gaussian(count + 3, width, seed=2) + 0.3

    covariances = [np.cov(features.numpy(), rowvar=False) for features in (a, b)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    shift = (a.mean(dim=0) - b.mean(dim=0)).square().sum().item()
    reference = shift + np.trace(covariances[0] + covariances[1] - 2 * root)

    assert fidelity.frechet_distance(a, b) == pytest.approx(reference, rel=1e-4)
    assert fidelity.frechet_distance(b, a) == pytest.approx(fidelity.frechet_distance(a, b), rel=1e-6)


@pytest.mark.parametrize(("count", "width"), [(300, 24), (20, 24), (24, 24), (9, 100)])
def test_the_distance_is_that_of_torch_fidelity_to_the_sixth_digit(count, width):
    a, b = gaussian(count, width, seed=1).relu(), (gaussian(count + 5, width, seed=2) + 0.3).relu()

    reference = fid_statistics_to_metric(*map(fid_features_to_statistics, (a, b)), verbose=False)["frechet_inception_distance"]

    assert fidelity.frechet_distance(a, b) == pytest.approx(reference, rel=1e-6)


def test_an_interval_holds_the_distance_and_is_as_wide_as_other_sets_scatter():
    sets = [(torch.randn(60, 6, generator=rng(2 * one)), torch.randn(80, 6, generator=rng(2 * one + 1)) + 1) for one in range(40)]
    distances = [fidelity.frechet_distance(*both) for both in sets]

    low, high = fidelity.frechet_interval(*sets[0], range(60), np.random.default_rng(0))

    assert low < distances[0] < high
    assert (high - low) / (2 * 1.96) == pytest.approx(np.std(distances), rel=0.35)
    assert [low, high] == fidelity.frechet_interval(*sets[0], range(60), np.random.default_rng(0))


def test_pictures_of_one_group_are_taken_or_left_together():
    """Four alike of each of 15: of 60 pictures no more is known than of 15."""
    few, real = torch.randn(15, 4, generator=rng(1)), torch.randn(60, 4, generator=rng(2))

    together = fidelity.frechet_interval(few.repeat(4, 1), real, [*range(15)] * 4, np.random.default_rng(0))
    apart = fidelity.frechet_interval(few.repeat(4, 1), real, range(60), np.random.default_rng(0))

    assert together[1] - together[0] > 1.4 * (apart[1] - apart[0])


def test_an_interval_ends_at_0():
    same = torch.randn(20, 3, generator=rng(1))

    assert fidelity.frechet_interval(same, same, range(20), np.random.default_rng(0))[0] == 0.0


@given(st.integers(2, 12), st.integers(2, 12), st.integers(1, 6), st.integers(0, 1000))
def test_a_distance_is_finite_and_never_negative(count_a, count_b, width, seed):
    a, b = gaussian(count_a, width, seed), gaussian(count_b, width, seed + 1)

    assert 0 <= fidelity.frechet_distance(a, b) < math.inf


def test_features_that_have_no_distance_are_refused():
    with pytest.raises(ValueError, match=r"2 or more pictures; found \(1, 4\)"):
        fidelity.frechet_distance(torch.zeros(5, 4), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="features of one width; found 4 and 3"):
        fidelity.frechet_distance(torch.zeros(5, 4), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="found 1 and 3"):
        fidelity.frechet_distance(torch.zeros(5, 1), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="not finite"):
        fidelity.frechet_distance(torch.zeros(5, 4), torch.full((5, 4), torch.nan))


# --- kernel distance, precision and recall ---------------------------------------------------------------------------


def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3


def test_a_kernel_distance_is_the_mean_unbiased_mmd_of_random_halves():
    """Written out: the mean of k over pairs of different pictures of a side, for both, less twice that over pairs across."""
    a, b = gaussian(14, 3, seed=1).numpy(), gaussian(9, 3, seed=2).numpy()
    rng, found = np.random.RandomState(7), []
    for _ in range(100):
        x, y = a[rng.choice(14, 4, replace=False)], b[rng.choice(9, 4, replace=False)]
        apart = ~np.eye(4, dtype=bool)
        found.append(kernel(x, x)[apart].mean() + kernel(y, y)[apart].mean() - 2 * kernel(x, y).mean())

    told = fidelity.kernel_distance(torch.from_numpy(a), torch.from_numpy(b), seed=7)

    assert told == {"mean": pytest.approx(np.mean(found), rel=1e-6), "deviation": pytest.approx(np.std(found), rel=1e-6),
                    "subsets": 100, "size": 4}    # fmt: skip


def test_a_kernel_distance_is_near_0_between_alike_sets_grows_with_a_shift_and_repeats_to_the_digit():
    a, b = torch.randn(400, 8, generator=rng(1)), torch.randn(300, 8, generator=rng(2))

    alike, shifted = fidelity.kernel_distance(a, b, seed=0), fidelity.kernel_distance(a, b + 0.5, seed=0)

    assert abs(alike["mean"]) < 0.05 < 0.2 < shifted["mean"] and (alike["subsets"], alike["size"]) == (100, 150)
    assert fidelity.kernel_distance(a, b, seed=0) == alike != fidelity.kernel_distance(a, b, seed=1)


def test_precision_is_of_the_drawn_and_recall_of_the_real():
    here, there = torch.randn(40, 4, generator=rng(1)) * 0.1, torch.randn(40, 4, generator=rng(2)) * 0.1 + 9
    both = torch.cat([here, there])

    assert all(side.all() for side in fidelity.precision_recall(both, both))
    assert not any(side.any() for side in fidelity.precision_recall(here, there))
    drawn, real = fidelity.precision_recall(here, both)    # all drawn are like real ones, but half of the real are missing
    assert drawn.tolist() == [True] * 40 and real.tolist() == [True] * 40 + [False] * 40


@pytest.mark.parametrize("rows_at_once", [7, 4096])
def test_precision_and_recall_are_those_of_torch_fidelity(rows_at_once, monkeypatch):
    a, b = gaussian(60, 5, seed=1), gaussian(41, 5, seed=2) + 1.5
    monkeypatch.setattr(fidelity, "ROWS_AT_ONCE", rows_at_once)

    drawn, real = fidelity.precision_recall(a, b)

    assert 0 < drawn.double().mean() < 1 and (len(drawn), len(real)) == (60, 41)
    wanted = calculate_precision_recall_full(a, b, neighborhood=3)
    assert (drawn.double().mean().item(), real.double().mean().item()) == pytest.approx(wanted)


@pytest.mark.parametrize("measure", [lambda a, b: fidelity.kernel_distance(a, b, 0), fidelity.precision_recall])
def test_features_that_cannot_be_compared_are_refused(measure):
    with pytest.raises(ValueError, match=r"wants rows \(N, D\) of 4 or more pictures; found \(3, 4\)"):
        measure(torch.zeros(5, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="wants features of one width; found 4 and 3"):
        measure(torch.zeros(5, 4), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="not finite"):
        measure(torch.zeros(5, 4), torch.full((5, 4), torch.nan))


# --- Inception Score -------------------------------------------------------------------------------------------------


def test_sure_and_evenly_spread_classes_score_their_number_and_equal_rows_one():
    sure, alike = 1000 * torch.eye(5).repeat(3, 1), torch.tensor([[0.2, 0.7, 0.1]]).log().repeat(20, 1)
    assert fidelity.inception_score(sure, splits=1)["mean"] == pytest.approx(5.0)
    assert fidelity.inception_score(alike) == {"mean": pytest.approx(1.0), "deviation": pytest.approx(0, abs=1e-9), "splits": 10}


def test_an_inception_score_is_the_exponential_of_what_a_picture_tells_of_its_class():
    logits = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()

    told = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert fidelity.inception_score(logits, splits=1)["mean"] == pytest.approx(math.exp(told))


def test_too_few_pictures_or_no_numbers_have_no_inception_score():
    with pytest.raises(ValueError, match=r"of 10 or more pictures; found \(4, 3\)"):
        fidelity.inception_score(torch.randn(4, 3, generator=rng()))
    with pytest.raises(ValueError, match="not finite"):
        fidelity.inception_score(torch.full((20, 3), torch.nan))


# --- blur ------------------------------------------------------------------------------------------------------------


def convolved(images: torch.Tensor, radius: float) -> torch.Tensor:
    """A reference: the whole kernel at once, over a picture with its reflection around it."""
    reach = math.ceil(4 * radius)
    line = torch.exp(-torch.arange(-reach, reach + 1.0).square() / (2 * radius**2))
    kernel = torch.outer(line, line) / line.sum() ** 2
    padded = functional.pad(images, (reach, reach, reach, reach), mode="reflect")
    return functional.conv2d(padded.flatten(0, 1)[:, None], kernel[None, None]).view_as(images)


@pytest.mark.parametrize("radius", [0.5, 1, 2, 3])
def test_a_blur_is_a_convolution_with_a_gaussian_of_that_deviation(radius):
    images = torch.rand(2, 3, 16, 20, generator=rng())

    torch.testing.assert_close(fidelity.blur(images, radius), convolved(images, radius), rtol=0, atol=1e-5)


def test_a_blur_of_radius_zero_gives_the_same_bits():
    images = pictures(2)

    assert torch.equal(fidelity.blur(images, 0), images)


@pytest.mark.parametrize("radius", fidelity.RADII)
@pytest.mark.parametrize("side", [1, 2, 5, 16])    # most of them smaller than the Gaussian is wide
def test_a_blur_keeps_a_plain_picture_and_stays_in_range(radius, side):
    plain, noise = torch.full((1, 3, side, side), 0.3), torch.rand(1, 3, side, side, generator=rng())

    torch.testing.assert_close(fidelity.blur(plain, radius), plain)
    blurred = fidelity.blur(noise, radius)
    assert blurred.shape == noise.shape and noise.min() - 1e-6 <= blurred.min() and blurred.max() <= noise.max() + 1e-6


def test_a_wider_blur_leaves_less_detail_and_the_argument_as_it_was():
    images = pictures(1)
    before = images.clone()

    detail = [fidelity.blur(images, radius).std().item() for radius in fidelity.RADII]

    assert all(wider < finer for finer, wider in zip(detail, detail[1:], strict=False)) and len(detail) == 9
    assert torch.equal(images, before)
    with pytest.raises(ValueError, match="0 or more pixels; found -1"):
        fidelity.blur(images, -1)


# --- neighbours ------------------------------------------------------------------------------------------------------


def test_the_nearest_of_many_is_the_planted_copy_however_long_it_is():
    features, others = torch.randn(5, 16, generator=rng(1)), torch.randn(40, 16, generator=rng(2))
    others[[3, 17, 39]] = features[[4, 0, 2]] * torch.tensor([[2.0], [0.5], [1.0]])

    similarity, index = fidelity.nearest(features, others)

    assert index[[4, 0, 2]].tolist() == [3, 17, 39]
    assert similarity[[4, 0, 2]].tolist() == pytest.approx([1, 1, 1]) and similarity[[1, 3]].max() < 0.9


@pytest.mark.parametrize("rows_at_once", [1, 3, 7, 100])
def test_neighbours_do_not_depend_on_how_many_are_looked_at_at_once(rows_at_once, monkeypatch):
    features, others = torch.randn(11, 4, generator=rng(1)), torch.randn(23, 4, generator=rng(2))
    table = functional.cosine_similarity(features[:, None], others[None], dim=2)

    monkeypatch.setattr(fidelity, "ROWS_AT_ONCE", rows_at_once)
    similarity, index = fidelity.nearest(features, others)

    assert index.tolist() == table.argmax(dim=1).tolist()
    torch.testing.assert_close(similarity, table.max(dim=1).values)


def test_an_overlap_is_what_lies_above_the_threshold():
    held_out = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    training = torch.tensor([[0.0, 2.0], [1.0, 1.0]])

    found = fidelity.overlap(held_out, training, threshold=0.9)

    assert found.index.tolist() == [1, 0, 0]
    assert found.similarity.tolist() == pytest.approx([math.sqrt(0.5), 1, 0])
    assert found.is_overlapping.tolist() == [False, True, False] and found.share == pytest.approx(1 / 3)
    assert found.closest(2) == [1, 0]


def test_around_a_threshold_lie_the_last_above_and_the_first_below():
    found = fidelity.Overlap(torch.tensor([0.2, 0.99, 0.7, 0.95, 0.4, 0.9]), torch.zeros(6, dtype=torch.int64), 0.8)
    assert found.around(2) == [3, 5, 2, 4] and found.around(1) == [5, 2]
    assert found.around(9) == [1, 3, 5, 2, 4, 0]
    nothing_above = fidelity.Overlap(found.similarity, found.index, 1.0)
    assert nothing_above.around(2) == [1, 3]


def test_neighbours_among_none_or_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"M above 0; found \(2, 3\) and \(0, 3\)"):
        fidelity.nearest(torch.zeros(2, 3), torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"found \(2, 3\) and \(2, 4\)"):
        fidelity.nearest(torch.zeros(2, 3), torch.zeros(2, 4))
