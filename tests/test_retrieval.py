"""Recall at k: counted by hand, with ties, and on similarities without an opinion."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from thousandwords.evaluation import clip_score
from thousandwords.retrieval import recall_at, retrieval


def test_recall_counts_how_often_the_own_one_is_among_the_nearest_and_shares_ties():
    similarity = [[0.9, 0.1, 0.2], [0.8, 0.5, 0.6], [0.3, 0.3, 0.3]]  # first, third, and one of three as near

    assert recall_at(similarity, (1, 2, 3)) == {"r1": pytest.approx(4 / 9), "r2": pytest.approx(5 / 9), "r3": 1.0}
    assert recall_at(np.eye(20)) == {"r1": 1.0, "r5": 1.0, "r10": 1.0}
    assert recall_at(np.zeros((20, 20))) == pytest.approx({"r1": 0.05, "r5": 0.25, "r10": 0.5})


def test_own_captions_of_pictures_and_own_pictures_of_captions_are_looked_for():
    pictures, captions = torch.eye(3)[[0, 1, 2, 0]], torch.eye(3)[[0, 1, 2, 1]]

    found = retrieval(pictures, captions)

    # the last picture is red and its caption says green: it finds the first's caption, and its caption the second's picture
    each = {"r1": 0.625, "r5": 1.0, "r10": 1.0}
    assert found == {"pictures": 4, "captions_of_pictures": each, "pictures_of_captions": each}


def test_a_clip_score_is_told_raw_and_scaled_without_what_is_below_0():
    told = clip_score(np.array([[-0.5, 0.5]]), seed=0)

    assert (told["n1"], told["best"]) == (0.0, 0.5) and told["scaled"] == {"n1": 25.0, "best": 50.0}
