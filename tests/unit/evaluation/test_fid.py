"""Fréchet distance, Inception Score, blur and neighbors against closed forms, references and planted answers."""

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

from tests.helpers.tiny_models import random_images, rng
from thousandwords.evaluation import fid


def gaussian(count: int, width: int, seed: int = 0) -> torch.Tensor:
    """Correlated features (count, width), float64."""
    mix = torch.randn(width, width, generator=rng(seed + 100), dtype=torch.float64)
    return torch.randn(count, width, generator=rng(seed), dtype=torch.float64) @ mix


def whitened(count: int, width: int, seed: int = 0) -> torch.Tensor:
    """Features (count, width) of mean 0 and covariance 1, exactly."""
    centered = gaussian(count, width, seed) - gaussian(count, width, seed).mean(dim=0)
    return torch.linalg.qr(centered).Q * math.sqrt(count - 1)


# --- Fréchet distance ------------------------------------------------------------------------------------------------


def test_the_distance_of_a_set_from_itself_is_0_in_any_order():
    features = gaussian(50, 6)

    assert fid.frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    assert fid.frechet_distance(features, features.flip(0)) == pytest.approx(0, abs=1e-9)


def test_the_distance_of_a_shifted_set_is_the_squared_length_of_the_shift():
    features, shift = gaussian(50, 3), torch.tensor([1.0, -2.0, 2.0])

    assert fid.frechet_distance(features, features + shift) == pytest.approx(9.0)


def test_the_distance_of_diagonal_covariances_is_the_squared_difference_of_deviations():
    unit = whitened(40, 3)

    distance = fid.frechet_distance(
        unit * torch.tensor([1.0, 2.0, 3.0]), unit * torch.tensor([4.0, 2.0, 1.0])
    )

    assert distance == pytest.approx(3.0**2 + 0.0**2 + 2.0**2)


def test_the_distance_of_one_feature_is_that_of_means_and_deviations():
    a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [7.0]])  # means 1, 4; variances 2, 18

    assert fid.frechet_distance(a, b) == pytest.approx(3**2 + (math.sqrt(18) - math.sqrt(2)) ** 2)


@pytest.mark.paper("evaluation: evaluation")
@pytest.mark.parametrize(
    ("count", "width"), [(60, 8), (6, 8)]
)  # the second has covariances without full rank
def test_the_distance_is_that_of_a_matrix_square_root(count, width):
    a, b = gaussian(count, width, seed=1), gaussian(count + 3, width, seed=2) + 0.3

    covariances = [np.cov(features.numpy(), rowvar=False) for features in (a, b)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    shift = (a.mean(dim=0) - b.mean(dim=0)).square().sum().item()
    reference = shift + np.trace(covariances[0] + covariances[1] - 2 * root)

    assert fid.frechet_distance(a, b) == pytest.approx(reference, rel=1e-4)
    assert fid.frechet_distance(b, a) == pytest.approx(fid.frechet_distance(a, b), rel=1e-6)


@pytest.mark.parametrize(("count", "width"), [(300, 24), (20, 24), (24, 24), (9, 100)])
def test_the_distance_is_that_of_torch_fidelity_to_the_sixth_digit(count, width):
    a, b = gaussian(count, width, seed=1).relu(), (gaussian(count + 5, width, seed=2) + 0.3).relu()

    reference = fid_statistics_to_metric(*map(fid_features_to_statistics, (a, b)), verbose=False)[
        "frechet_inception_distance"
    ]

    assert fid.frechet_distance(a, b) == pytest.approx(reference, rel=1e-6)


def test_an_interval_contains_the_distance_and_is_as_wide_as_the_scatter_of_other_sets():
    sets = [
        (torch.randn(60, 6, generator=rng(2 * seed)), torch.randn(80, 6, generator=rng(2 * seed + 1)) + 1)
        for seed in range(40)
    ]
    distances = [fid.frechet_distance(*both) for both in sets]

    low, high = fid.frechet_interval(*sets[0], range(60), np.random.default_rng(0))

    assert low < distances[0] < high
    assert (high - low) / (2 * 1.96) == pytest.approx(np.std(distances), rel=0.35)
    assert [low, high] == fid.frechet_interval(*sets[0], range(60), np.random.default_rng(0))


def test_images_of_one_group_are_resampled_together():
    """Four copies of each of 15 images: 60 images carry no more information than 15."""
    few, real = torch.randn(15, 4, generator=rng(1)), torch.randn(60, 4, generator=rng(2))

    together = fid.frechet_interval(few.repeat(4, 1), real, [*range(15)] * 4, np.random.default_rng(0))
    apart = fid.frechet_interval(few.repeat(4, 1), real, range(60), np.random.default_rng(0))

    assert together[1] - together[0] > 1.4 * (apart[1] - apart[0])


def test_an_interval_ends_at_0():
    same = torch.randn(20, 3, generator=rng(1))

    assert fid.frechet_interval(same, same, range(20), np.random.default_rng(0))[0] == 0.0


@given(st.integers(2, 12), st.integers(2, 12), st.integers(1, 6), st.integers(0, 1000))
def test_a_distance_is_finite_and_never_negative(count_a, count_b, width, seed):
    a, b = gaussian(count_a, width, seed), gaussian(count_b, width, seed + 1)

    assert 0 <= fid.frechet_distance(a, b) < math.inf


def test_features_that_have_no_distance_are_rejected():
    with pytest.raises(ValueError, match=r"2 or more images; found \(1, 4\)"):
        fid.frechet_distance(torch.zeros(5, 4), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="features of one width; found 4 and 3"):
        fid.frechet_distance(torch.zeros(5, 4), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="found 1 and 3"):
        fid.frechet_distance(torch.zeros(5, 1), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="not finite"):
        fid.frechet_distance(torch.zeros(5, 4), torch.full((5, 4), torch.nan))


# --- kernel distance, precision and recall ---------------------------------------------------------------------------


def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3


def test_a_kernel_distance_is_the_mean_unbiased_mmd_of_random_halves():
    """Written out: the mean of k over pairs of different images of a side, for both, less twice that over pairs across."""
    a, b = gaussian(14, 3, seed=1).numpy(), gaussian(9, 3, seed=2).numpy()
    rng, distances = np.random.RandomState(7), []
    for _ in range(100):
        x, y = a[rng.choice(14, 4, replace=False)], b[rng.choice(9, 4, replace=False)]
        apart = ~np.eye(4, dtype=bool)
        distances.append(kernel(x, x)[apart].mean() + kernel(y, y)[apart].mean() - 2 * kernel(x, y).mean())

    result = fid.kernel_distance(torch.from_numpy(a), torch.from_numpy(b), seed=7)

    assert result == {
        "mean": pytest.approx(np.mean(distances), rel=1e-6),
        "deviation": pytest.approx(np.std(distances), rel=1e-6),
        "subsets": 100,
        "size": 4,
    }


def test_a_kernel_distance_is_near_0_for_similar_sets_grows_with_a_shift_and_is_deterministic():
    a, b = torch.randn(400, 8, generator=rng(1)), torch.randn(300, 8, generator=rng(2))

    alike, shifted = fid.kernel_distance(a, b, seed=0), fid.kernel_distance(a, b + 0.5, seed=0)

    assert abs(alike["mean"]) < 0.05 < 0.2 < shifted["mean"] and (alike["subsets"], alike["size"]) == (
        100,
        150,
    )
    assert fid.kernel_distance(a, b, seed=0) == alike != fid.kernel_distance(a, b, seed=1)


def test_precision_is_of_samples_and_recall_of_real_images():
    here, there = torch.randn(40, 4, generator=rng(1)) * 0.1, torch.randn(40, 4, generator=rng(2)) * 0.1 + 9
    both = torch.cat([here, there])

    assert all(mask.all() for mask in fid.precision_recall(both, both))
    assert not any(mask.any() for mask in fid.precision_recall(here, there))
    samples, real = fid.precision_recall(
        here, both
    )  # all samples are similar to real images, but half of the real images are missing
    assert samples.tolist() == [True] * 40 and real.tolist() == [True] * 40 + [False] * 40


@pytest.mark.parametrize("rows_at_once", [7, 4096])
def test_precision_and_recall_are_those_of_torch_fidelity(rows_at_once, monkeypatch):
    a, b = gaussian(60, 5, seed=1), gaussian(41, 5, seed=2) + 1.5
    monkeypatch.setattr(fid, "ROWS_AT_ONCE", rows_at_once)

    samples, real = fid.precision_recall(a, b)

    assert 0 < samples.double().mean() < 1 and (len(samples), len(real)) == (60, 41)
    expected = calculate_precision_recall_full(a, b, neighborhood=3)
    assert (samples.double().mean().item(), real.double().mean().item()) == pytest.approx(expected)


@pytest.mark.parametrize("measure", [lambda a, b: fid.kernel_distance(a, b, 0), fid.precision_recall])
def test_features_that_cannot_be_compared_are_rejected(measure):
    with pytest.raises(ValueError, match=r"needs rows \(N, D\) of 4 or more images; found \(3, 4\)"):
        measure(torch.zeros(5, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="needs features of one width; found 4 and 3"):
        measure(torch.zeros(5, 4), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="not finite"):
        measure(torch.zeros(5, 4), torch.full((5, 4), torch.nan))


# --- Inception Score -------------------------------------------------------------------------------------------------


def test_certain_and_evenly_spread_classes_score_their_number_and_equal_rows_one():
    sure, alike = 1000 * torch.eye(5).repeat(3, 1), torch.tensor([[0.2, 0.7, 0.1]]).log().repeat(20, 1)
    assert fid.inception_score(sure, splits=1)["mean"] == pytest.approx(5.0)
    assert fid.inception_score(alike) == {
        "mean": pytest.approx(1.0),
        "deviation": pytest.approx(0, abs=1e-9),
        "splits": 10,
    }


@pytest.mark.paper("evaluation: evaluation")
def test_an_inception_score_is_the_exponential_of_the_information_that_an_image_has_of_its_class():
    logits = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()

    information = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert fid.inception_score(logits, splits=1)["mean"] == pytest.approx(math.exp(information))


def test_too_few_images_or_no_numbers_have_no_inception_score():
    with pytest.raises(ValueError, match=r"of 10 or more images; found \(4, 3\)"):
        fid.inception_score(torch.randn(4, 3, generator=rng()))
    with pytest.raises(ValueError, match="not finite"):
        fid.inception_score(torch.full((20, 3), torch.nan))


# --- blur ------------------------------------------------------------------------------------------------------------


def convolved(images: torch.Tensor, radius: float) -> torch.Tensor:
    """A reference: the whole kernel at once, over an image with its reflection around it."""
    reach = math.ceil(4 * radius)
    line = torch.exp(-torch.arange(-reach, reach + 1.0).square() / (2 * radius**2))
    kernel = torch.outer(line, line) / line.sum() ** 2
    padded = functional.pad(images, (reach, reach, reach, reach), mode="reflect")
    return functional.conv2d(padded.flatten(0, 1)[:, None], kernel[None, None]).view_as(images)


@pytest.mark.paper("evaluation: evaluation")
@pytest.mark.parametrize("radius", [0.5, 1, 2, 3])
def test_a_blur_is_a_convolution_with_a_gaussian_of_that_deviation(radius):
    images = torch.rand(2, 3, 16, 20, generator=rng())

    torch.testing.assert_close(fid.blur(images, radius), convolved(images, radius), rtol=0, atol=1e-5)


def test_a_blur_of_radius_zero_returns_the_same_bits():
    images = random_images(2)

    assert torch.equal(fid.blur(images, 0), images)


@pytest.mark.parametrize("radius", fid.RADII)
@pytest.mark.parametrize("side", [1, 2, 5, 16])  # most of them smaller than the Gaussian is wide
def test_a_blur_keeps_a_plain_image_and_stays_in_range(radius, side):
    plain, noise = torch.full((1, 3, side, side), 0.3), torch.rand(1, 3, side, side, generator=rng())

    torch.testing.assert_close(fid.blur(plain, radius), plain)
    blurred = fid.blur(noise, radius)
    assert (
        blurred.shape == noise.shape
        and noise.min() - 1e-6 <= blurred.min()
        and blurred.max() <= noise.max() + 1e-6
    )


def test_a_wider_blur_leaves_less_detail_and_does_not_change_its_argument():
    images = random_images(1)
    before = images.clone()

    detail = [fid.blur(images, radius).std().item() for radius in fid.RADII]

    assert all(wider < finer for finer, wider in zip(detail, detail[1:], strict=False)) and len(detail) == 9
    assert torch.equal(images, before)
    with pytest.raises(ValueError, match="0 or more pixels; found -1"):
        fid.blur(images, -1)


# --- neighbors ------------------------------------------------------------------------------------------------------


@pytest.mark.paper("evaluation: overlap")
def test_the_nearest_of_many_is_the_planted_copy_of_any_length():
    features, others = torch.randn(5, 16, generator=rng(1)), torch.randn(40, 16, generator=rng(2))
    others[[3, 17, 39]] = features[[4, 0, 2]] * torch.tensor([[2.0], [0.5], [1.0]])

    similarity, index = fid.nearest(features, others)

    assert index[[4, 0, 2]].tolist() == [3, 17, 39]
    assert similarity[[4, 0, 2]].tolist() == pytest.approx([1, 1, 1]) and similarity[[1, 3]].max() < 0.9


@pytest.mark.parametrize("rows_at_once", [1, 3, 7, 100])
def test_neighbors_do_not_depend_on_the_batch_size(rows_at_once, monkeypatch):
    features, others = torch.randn(11, 4, generator=rng(1)), torch.randn(23, 4, generator=rng(2))
    table = functional.cosine_similarity(features[:, None], others[None], dim=2)

    monkeypatch.setattr(fid, "ROWS_AT_ONCE", rows_at_once)
    similarity, index = fid.nearest(features, others)

    assert index.tolist() == table.argmax(dim=1).tolist()
    torch.testing.assert_close(similarity, table.max(dim=1).values)


def test_an_overlap_is_a_similarity_above_the_threshold():
    held_out = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    training = torch.tensor([[0.0, 2.0], [1.0, 1.0]])

    overlap = fid.find_overlap(held_out, training, threshold=0.9)

    assert overlap.index.tolist() == [1, 0, 0]
    assert overlap.similarity.tolist() == pytest.approx([math.sqrt(0.5), 1, 0])
    assert overlap.is_overlapping.tolist() == [False, True, False] and overlap.share == pytest.approx(1 / 3)
    assert overlap.closest(2) == [1, 0]


def test_around_a_threshold_are_the_last_above_and_the_first_below():
    overlap = fid.Overlap(
        torch.tensor([0.2, 0.99, 0.7, 0.95, 0.4, 0.9]), torch.zeros(6, dtype=torch.int64), 0.8
    )
    assert overlap.around_threshold(2) == [3, 5, 2, 4] and overlap.around_threshold(1) == [5, 2]
    assert overlap.around_threshold(9) == [1, 3, 5, 2, 4, 0]
    nothing_above = fid.Overlap(overlap.similarity, overlap.index, 1.0)
    assert nothing_above.around_threshold(2) == [1, 3]


def test_neighbors_among_none_or_of_another_width_are_rejected():
    with pytest.raises(ValueError, match=r"M above 0; found \(2, 3\) and \(0, 3\)"):
        fid.nearest(torch.zeros(2, 3), torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"found \(2, 3\) and \(2, 4\)"):
        fid.nearest(torch.zeros(2, 3), torch.zeros(2, 4))
