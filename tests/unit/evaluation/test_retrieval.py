"""Recall at k: counted by hand, with ties, and where all similarities are equal."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from thousandwords.evaluation.clip_score import clip_score
from thousandwords.evaluation.retrieval import hits_at, recall_at, retrieval


def without_intervals(block: dict) -> dict:
    return {name: value for name, value in block.items() if not name.endswith("_interval")}


def test_recall_counts_how_often_the_own_column_is_among_the_nearest_and_shares_ties():
    similarity = [[0.9, 0.1, 0.2], [0.8, 0.5, 0.6], [0.3, 0.3, 0.3]]  # first, third, and three equally near

    assert hits_at(similarity, 1).tolist() == pytest.approx([1, 0, 1 / 3])
    assert hits_at(similarity, 2).tolist() == pytest.approx([1, 0, 2 / 3]) and hits_at(
        similarity, 3
    ).tolist() == [1, 1, 1]
    assert without_intervals(recall_at(np.eye(20), 0)) == {"r1": 1.0, "r5": 1.0, "r10": 1.0}
    assert without_intervals(recall_at(np.zeros((20, 20)), 0)) == pytest.approx(
        {"r1": 0.05, "r5": 0.25, "r10": 0.5}
    )


def test_a_recall_has_an_interval_over_its_rows_that_depends_on_the_seed():
    recall = recall_at(np.eye(400) * (np.arange(400) % 4 > 0), 0, (1,))  # a quarter ties with all others

    assert recall["r1"] == pytest.approx(0.75, abs=0.001)
    assert recall["r1_interval"] == pytest.approx(
        [0.708, 0.792], abs=0.01
    )  # 1.96 √(0.75 · 0.25 / 400) either way
    assert recall_at(np.eye(400) * (np.arange(400) % 4 > 0), 0, (1,)) == recall


def test_retrieval_has_captions_of_images_and_images_of_captions():
    images, captions = torch.eye(3)[[0, 1, 2, 0]], torch.eye(3)[[0, 1, 2, 1]]

    recall = retrieval(images, captions, 0)

    # the last image is red and its caption says green: its nearest caption is the first's, its caption's nearest image the second
    each = {"r1": 0.625, "r5": 1.0, "r10": 1.0}
    assert recall["pictures"] == 4
    assert (
        without_intervals(recall["captions_of_pictures"])
        == without_intervals(recall["pictures_of_captions"])
        == each
    )


def test_a_clip_score_is_given_raw_and_scaled_with_negative_cosines_as_0():
    figures = clip_score(np.array([[-0.5, 0.5]]), seed=0)

    assert (figures["n1"], figures["best"]) == (0.0, 0.5) and figures["scaled"] == {
        "n1": 25.0,
        "n1_interval": [25.0, 25.0],
        "best": 50.0,
        "best_interval": [50.0, 50.0],
    }
