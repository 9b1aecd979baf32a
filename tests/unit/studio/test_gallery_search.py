"""Past draws found by what they show: in the scorer's own order, without the damaged, and new ones at once."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from studio.gallery import Drawn, Gallery
from studio.recall import Recall
from thousandwords import components, images
from thousandwords.drawing import Settings
from thousandwords.provenance import Provenance


@pytest.fixture(scope="module")
def scorer(parts):
    return components.load("scorers", parts["scorer"])


@pytest.fixture
def gallery(tmp_path):
    gallery = Gallery(tmp_path / "gallery")
    for seed in range(6):
        add(gallery, seed)
    return gallery


def add(gallery: Gallery, seed: int) -> str:
    pictures = np.random.default_rng(seed).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    facts = Provenance("a star", seed, 0, "0f" * 32, Settings(candidates=2))
    return gallery.add(Drawn(facts, "package", [[0] * 4] * 2, pictures, [0.1, 0.2], [1, 0]))


def test_draws_come_in_the_order_of_the_scorer_by_their_best_pictures(gallery, scorer):
    names = gallery.names()
    pixels = images.to_float(np.stack([gallery.best(name) for name in names]))
    with torch.no_grad():
        scores = scorer.score(pixels, ["a blue circle"] * len(names))
    wanted = [names[place] for place in scores.argsort(descending=True).tolist()]
    assert Recall(gallery).search(scorer, "a blue circle", 10) == wanted
    assert Recall(gallery).search(scorer, "a blue circle", 2) == wanted[:2]
    told = gallery.several(wanted)
    assert [draw["id"] for draw in told] == wanted and told[0]["best"][0]["candidate"] == 1


def test_what_is_new_is_found_and_what_is_gone_or_damaged_is_not(gallery, scorer):
    recall = Recall(gallery)
    first, second, *_ = gallery.names()
    assert len(recall.search(scorer, "a star", 10)) == 6
    gallery.remove(first)
    new = add(gallery, 9)
    assert set(recall.search(scorer, "a star", 10)) == set(gallery.names()) and new in gallery.names()
    (gallery.folder / second / "manifest.json").write_bytes(b"{")
    assert second not in Recall(gallery).search(scorer, "a star", 10)
    assert gallery.several([second, first, new]) == gallery.several([new])


def test_an_empty_gallery_has_nothing_to_find(tmp_path, scorer):
    assert Recall(Gallery(tmp_path / "none")).search(scorer, "a star", 10) == []
