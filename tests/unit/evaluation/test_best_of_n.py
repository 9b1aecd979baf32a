"""Image fidelity of the best of n candidates, with scores whose best candidates are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.unit.evaluation.test_image_fidelity import (
    MeanColor,
    classes,
    colors,
    plain,
    silent,
    write_and_read_samples,
)
from thousandwords.data.images import to_float, to_uint8
from thousandwords.evaluation import fid
from thousandwords.evaluation.best_of_n import best_of_n
from thousandwords.evaluation.feature_sets import embed_feature_sets
from thousandwords.evaluation.features import INCEPTION_FIGURES, Extractor

EXTRACTOR = Extractor(MeanColor(), classes, INCEPTION_FIGURES, "a stand-in", "none")
CANDIDATES = 6


@pytest.fixture
def samples(tmp_path):
    """Twelve prompts of held-out captions with six candidates each, and one of another split between them."""
    splits = ["validation"] * 5 + ["unseen"] + ["validation"] * 7
    return write_and_read_samples(
        tmp_path, plain(colors(13 * CANDIDATES, seed=3)), splits, candidates=CANDIDATES
    )


@pytest.fixture
def scores() -> np.ndarray:
    return np.random.default_rng(0).random((13, CANDIDATES))


def curve_of(samples, scores, real=None, seed=0):
    feature_sets = embed_feature_sets(
        EXTRACTOR, plain(colors(20, seed=1)) if real is None else real, samples, silent
    )
    return best_of_n(EXTRACTOR, feature_sets, samples, scores, silent, seed)


def vectors(samples) -> torch.Tensor:
    """The features of each candidate (13, 6, 3), as they come back from an image of bytes."""
    return to_float(to_uint8(plain(colors(13 * CANDIDATES, seed=3))))[:, :, 0, 0].view(13, CANDIDATES, 3)


def test_each_caption_is_represented_by_the_best_scored_of_its_first_n_candidates(samples, scores):
    curve = curve_of(samples, scores)

    assert (curve["n"], curve["captions"], curve["real"]) == ([1, 2, 4, 6], 12, 20)
    prompts, real = [row for row in range(13) if row != 5], colors(20, seed=1)
    for n, distance in zip(curve["n"], curve["fid"], strict=True):
        best = torch.stack([vectors(samples)[row, scores[row, :n].argmax()] for row in prompts])
        assert distance == pytest.approx(fid.frechet_distance(best, real), rel=1e-4)
    first = torch.stack([vectors(samples)[row, 0] for row in prompts])
    assert curve["inception_score"][0] == pytest.approx(fid.inception_score(10 * first)["mean"], rel=1e-4)


def test_each_distance_lies_in_its_interval_and_repeats_to_the_digit(samples, scores):
    curve = curve_of(samples, scores)

    assert all(
        low <= distance <= high
        for distance, (low, high) in zip(curve["fid"], curve["fid_interval"], strict=True)
    )
    assert curve_of(samples, scores) == curve != curve_of(samples, scores, seed=1)


def test_a_scorer_that_prefers_real_looking_images_lowers_the_distance(samples):
    near = colors(1, seed=9)[0]
    real = plain((near + 0.01 * torch.randn(20, 3, generator=torch.Generator().manual_seed(0))).clamp(0, 1))
    good = -(vectors(samples) - near).norm(dim=2).numpy()

    distance = curve_of(samples, good, real)["fid"]

    assert distance == sorted(distance, reverse=True) and distance[-1] < distance[0] / 2


def test_only_images_that_are_not_embedded_yet_are_embedded(samples, scores):
    network = MeanColor()
    extractor = Extractor(
        network,
        lambda network, images: (network.embed_images(images), images.new_zeros(len(images), 0)),
        INCEPTION_FIGURES,
        "counts",
        "none",
    )
    feature_sets = embed_feature_sets(
        extractor, plain(colors(20, seed=1)), samples, silent
    )  # the first two candidates of each caption
    network.batches.clear()

    curve = best_of_n(extractor, feature_sets, samples, scores, silent, 0)

    picked = {(row, int(scores[row, :n].argmax())) for row in range(13) if row != 5 for n in (1, 2, 4, 6)}
    assert (
        sum(network.batches) == len([candidate for _, candidate in picked if candidate >= 2]) > 0
        and "inception_score" not in curve
    )


def test_for_one_caption_there_is_no_curve(samples, scores):
    feature_sets = embed_feature_sets(
        EXTRACTOR,
        plain(colors(20, seed=1)),
        dataclasses.replace(samples, splits=["validation"] + ["own"] * 12),
        silent,
    )

    assert best_of_n(EXTRACTOR, feature_sets, samples, scores, silent, 0) == {}
