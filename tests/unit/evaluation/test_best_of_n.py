"""Likeness of the best of n candidates, by a scorer whose favourites are known."""
from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.test_likeness import MeanColour, classes, colours, plain, samples, silent
from thousandwords import best_of, fidelity
from thousandwords.features import OF_INCEPTION, Extractor
from thousandwords.images import to_float, to_uint8
from thousandwords.sides import embed_sides

BY = Extractor(MeanColour(), classes, OF_INCEPTION, "a stand-in", "none")
CANDIDATES = 6


@pytest.fixture
def drawn(tmp_path):
    """Twelve prompts of held-out captions with six candidates each; one of another split in their midst."""
    splits = ["validation"] * 5 + ["unseen"] + ["validation"] * 7
    return samples(tmp_path, plain(colours(13 * CANDIDATES, seed=3)), splits, candidates=CANDIDATES)


@pytest.fixture
def scores() -> np.ndarray:
    return np.random.default_rng(0).random((13, CANDIDATES))


def told(drawn, scores, real=None, seed=0):
    sides = embed_sides(BY, plain(colours(20, seed=1)) if real is None else real, drawn, silent)
    return best_of.curve(BY, sides, drawn, scores, silent, seed)


def vectors(drawn) -> torch.Tensor:
    """The features of each candidate (13, 6, 3), as they come back from a picture of bytes."""
    return to_float(to_uint8(plain(colours(13 * CANDIDATES, seed=3))))[:, :, 0, 0].view(13, CANDIDATES, 3)


def test_each_caption_is_shown_by_the_favourite_of_its_first_n_candidates(drawn, scores):
    curve = told(drawn, scores)

    assert (curve["n"], curve["captions"], curve["real"]) == ([1, 2, 4, 6], 12, 20)
    prompts, real = [row for row in range(13) if row != 5], colours(20, seed=1)
    for n, distance in zip(curve["n"], curve["fid"], strict=True):
        best = torch.stack([vectors(drawn)[row, scores[row, :n].argmax()] for row in prompts])
        assert distance == pytest.approx(fidelity.frechet_distance(best, real), rel=1e-4)
    first = torch.stack([vectors(drawn)[row, 0] for row in prompts])
    assert curve["inception_score"][0] == pytest.approx(fidelity.inception_score(10 * first)["mean"], rel=1e-4)


def test_each_distance_lies_in_its_interval_and_repeats_to_the_digit(drawn, scores):
    curve = told(drawn, scores)

    assert all(low <= one <= high for one, (low, high) in zip(curve["fid"], curve["fid_interval"], strict=True))
    assert told(drawn, scores) == curve != told(drawn, scores, seed=1)


def test_a_scorer_that_knows_real_pictures_brings_them_nearer(drawn):
    near = colours(1, seed=9)[0]
    real = plain((near + 0.01 * torch.randn(20, 3, generator=torch.Generator().manual_seed(0))).clamp(0, 1))
    good = -(vectors(drawn) - near).norm(dim=2).numpy()

    distance = told(drawn, good, real)["fid"]

    assert distance == sorted(distance, reverse=True) and distance[-1] < distance[0] / 2


def test_only_favourites_that_were_not_compared_before_are_embedded(drawn, scores):
    network = MeanColour()
    by = Extractor(network, lambda it, pictures: (it.embed_images(pictures), pictures.new_zeros(len(pictures), 0)),
                   OF_INCEPTION, "counts", "none")    # fmt: skip
    sides = embed_sides(by, plain(colours(20, seed=1)), drawn, silent)    # the first two candidates of each caption
    network.batches.clear()

    curve = best_of.curve(by, sides, drawn, scores, silent, 0)

    picked = {(row, int(scores[row, :n].argmax())) for row in range(13) if row != 5 for n in (1, 2, 4, 6)}
    assert sum(network.batches) == len([one for one in picked if one[1] >= 2]) > 0 and "inception_score" not in curve


def test_of_one_caption_there_is_no_curve(drawn, scores):
    sides = embed_sides(BY, plain(colours(20, seed=1)), dataclasses.replace(drawn, splits=["validation"] + ["own"] * 12), silent)

    assert best_of.curve(BY, sides, drawn, scores, silent, 0) == {}
