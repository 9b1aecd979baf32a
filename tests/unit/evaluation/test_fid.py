"""Fréchet and kernel distance, precision and recall, Inception Score and blur: against closed forms and references.

That all of them are those of torch-fidelity for the same images is in test_features.py.
"""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from tests.helpers.tiny_models import rng
from thousandwords.evaluation import fid


def gaussian(count: int, width: int, seed: int = 0) -> torch.Tensor:
    """Correlated features (count, width), float64."""
    mix = torch.randn(width, width, generator=rng(seed + 100), dtype=torch.float64)
    return torch.randn(count, width, generator=rng(seed), dtype=torch.float64) @ mix


@pytest.mark.paper("evaluation: evaluation")
@pytest.mark.parametrize(("count", "width"), [(300, 24), (20, 24), (24, 24), (9, 100)])
def test_the_distance_is_that_of_torch_fidelity_to_the_sixth_digit(count, width):
    a, b = gaussian(count, width, seed=1).relu(), (gaussian(count + 5, width, seed=2) + 0.3).relu()
    statistics = map(fid_features_to_statistics, (a, b))
    reference = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert fid.frechet_distance(a, b) == pytest.approx(reference, rel=1e-6)
    assert fid.frechet_distance(b, a) == pytest.approx(reference, rel=1e-6)


def test_a_distance_does_not_depend_on_the_order_of_rounding():
    a, b = gaussian(300, 24, seed=1), gaussian(305, 24, seed=2)
    orders = [torch.randperm(300, generator=rng(seed)) for seed in range(20)]
    for scale in (1e-3, 1, 1e3):
        distances = {fid.frechet_distance(scale * a[order], scale * b) for order in orders}
        assert distances == {fid.frechet_distance(scale * a, scale * b)} != {0.0}
    assert {fid.frechet_distance(a[order], a) for order in orders} == {0.0}


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
    same = sets[0][0]
    assert fid.frechet_interval(same, same, range(60), np.random.default_rng(0))[0] == 0.0


def test_images_of_one_group_are_resampled_together():
    """Four copies of each of 15 images: 60 images carry no more information than 15."""
    few, real = torch.randn(15, 4, generator=rng(1)), torch.randn(60, 4, generator=rng(2))
    groups = ([*range(15)] * 4, range(60))
    intervals = [
        fid.frechet_interval(few.repeat(4, 1), real, group, np.random.default_rng(0)) for group in groups
    ]
    together, apart = (high - low for low, high in intervals)
    assert together > 1.4 * apart


@pytest.mark.parametrize("rows_at_once", [7, 4096])
def test_precision_is_of_samples_and_recall_of_real_images(rows_at_once, monkeypatch):
    monkeypatch.setattr(fid, "ROWS_AT_ONCE", rows_at_once)
    here, there = torch.randn(40, 4, generator=rng(1)) * 0.1, torch.randn(40, 4, generator=rng(2)) * 0.1 + 9
    both = torch.cat([here, there])
    assert all(mask.all() for mask in fid.precision_recall(both, both))
    assert not any(mask.any() for mask in fid.precision_recall(here, there))
    # all samples are similar to real images, but half of the real images are missing
    samples, real = fid.precision_recall(here, both)
    assert samples.tolist() == [True] * 40 and real.tolist() == [True] * 40 + [False] * 40


@pytest.mark.parametrize(
    "measure", ["frechet_distance", "precision_recall", "kernel_distance", "inception_score"]
)
def test_features_that_are_not_finite_are_rejected(measure):
    with pytest.raises(ValueError, match="not finite"):
        seed = [0] if measure == "kernel_distance" else []
        sets = [torch.full((20, 4), torch.nan), torch.zeros(20, 4)]
        getattr(fid, measure)(*sets[: 1 if measure == "inception_score" else 2], *seed)


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


@pytest.mark.parametrize("radius", [0, 1, 8])
@pytest.mark.parametrize("side", [1, 2, 5, 16])  # most of them smaller than the Gaussian is wide
def test_a_blur_keeps_a_plain_image_and_stays_in_range(radius, side):
    plain, noise = torch.full((1, 3, side, side), 0.3), torch.rand(1, 3, side, side, generator=rng())
    torch.testing.assert_close(fid.blur(plain, radius), plain)
    blurred = fid.blur(noise, radius)
    assert blurred.shape == noise.shape and (radius or blurred.equal(noise))
    assert noise.min() - 1e-6 <= blurred.min() and blurred.max() <= noise.max() + 1e-6
