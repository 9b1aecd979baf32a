"""Search of the gallery: in the scorer's own order, without damaged entries, and with new ones at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from studio.data.gallery import Gallery, GalleryEntry
from studio.data.gallery_search import GallerySearch
from thousandwords import components
from thousandwords.data.images import to_float
from thousandwords.inference.config import SamplingConfig
from thousandwords.inference.provenance import Provenance


@pytest.fixture(scope="module")
def scorer(parts):
    return components.load("scorers", parts["scorer"])


@pytest.fixture
def gallery(tmp_path):
    gallery = Gallery(tmp_path / "gallery")
    for seed in range(6):
        add_entry(gallery, seed)
    return gallery


def add_entry(gallery: Gallery, seed: int) -> str:
    images = np.random.default_rng(seed).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    provenance = Provenance("a star", seed, 0, "0f" * 32, SamplingConfig(candidates=2))
    return gallery.add(GalleryEntry(provenance, "package", [[0] * 4] * 2, images, [0.1, 0.2], [1, 0]))


def test_entries_come_in_the_order_of_the_scorer_by_their_best_images(gallery, scorer):
    names = gallery.names()
    pixels = to_float(np.stack([gallery.best_image(name) for name in names]))
    with torch.no_grad():
        scores = scorer.score(pixels, ["a blue circle"] * len(names))
    expected = [names[index] for index in scores.argsort(descending=True).tolist()]
    assert GallerySearch(gallery).search(scorer, "a blue circle", 10) == expected
    assert GallerySearch(gallery).search(scorer, "a blue circle", 2) == expected[:2]
    entries = gallery.entries(expected)
    assert [entry["id"] for entry in entries] == expected and entries[0]["best"][0]["candidate"] == 1


def test_new_entries_are_found_and_deleted_or_damaged_ones_are_not(gallery, scorer):
    search = GallerySearch(gallery)
    first, second, *_ = gallery.names()
    assert len(search.search(scorer, "a star", 10)) == 6
    gallery.remove(first)
    new = add_entry(gallery, 9)
    assert set(search.search(scorer, "a star", 10)) == set(gallery.names()) and new in gallery.names()
    (gallery.folder / second / "manifest.json").write_bytes(b"{")
    assert second not in GallerySearch(gallery).search(scorer, "a star", 10)
    assert gallery.entries([second, first, new]) == gallery.entries([new])


def test_a_search_of_an_empty_gallery_finds_nothing(tmp_path, scorer):
    assert GallerySearch(Gallery(tmp_path / "none")).search(scorer, "a star", 10) == []
