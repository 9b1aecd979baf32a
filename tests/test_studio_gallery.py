"""Past draws: whole or not there, verified, newest first, with pictures that still say how they were drawn."""
from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.gallery import NAME, Drawn, Gallery, NoDraw
from tests.tiny import flipped
from thousandwords.drawing import Settings
from thousandwords.files import DamagedArtefact
from thousandwords.images import decode_png
from thousandwords.provenance import Provenance, provenance_of

FACTS = Provenance("a <b>red</b> star", 7, 0, "0f" * 32, Settings(candidates=3, batch_size=8))


def a_draw(seed: int = 7, given: tuple[int, ...] | None = None) -> Drawn:
    pictures = np.random.default_rng(seed).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    words = [[number] * 4 for number in range(3)]
    return Drawn(dataclasses.replace(FACTS, seed=seed, given=given), "package", words, pictures, [0.1, 0.3, 0.2], [1, 2, 0])


@pytest.fixture
def gallery(tmp_path):
    return Gallery(tmp_path / "gallery")


def test_a_draw_is_told_with_its_best_in_front(gallery):
    name = gallery.add(a_draw())
    (told,) = gallery.page(None, 10)["draws"]
    assert NAME.fullmatch(name) and told["id"] == name
    assert (told["prompt"], told["seed"], told["candidates"], told["version"], told["is_completion"]) == (
        "a <b>red</b> star", 7, 3, "package", False)  # fmt: skip
    assert [(one["candidate"], one["score"]) for one in told["best"]] == [(1, 0.3), (2, 0.2), (0, 0.1)]
    assert told["best"][0]["url"] == f"/api/gallery/{name}/1.png"
    assert [one["words"] for one in gallery.one(name)["pictures"]] == [[[1, 1], [1, 1]], [[2, 2], [2, 2]], [[0, 0], [0, 0]]]


def test_a_picture_is_as_it_was_and_says_how_it_was_drawn(gallery):
    drawn = a_draw(given=(-1, 1, 2, 3))
    name = gallery.add(drawn)
    assert gallery.page(None, 1)["draws"][0]["is_completion"]
    for number in range(3):
        data = gallery.picture(name, number)
        assert (decode_png(data) == drawn.pictures[number]).all()
        assert provenance_of(data) == dataclasses.replace(drawn.provenance, candidate=number)


def test_pages_hold_every_draw_once_newest_first(gallery):
    names = [f"2026010{day}T000000-{number:08x}" for day in (1, 2) for number in (1, 2, 3)]
    for name in names:
        os.rename(gallery.folder / gallery.add(a_draw()), gallery.folder / name)
    seen, before = [], None
    while True:
        page = gallery.page(before, 4)
        seen += [one["id"] for one in page["draws"]]
        if (before := page["next"]) is None:
            break
    assert seen == sorted(names, reverse=True)


def test_a_damaged_draw_hides_no_other_and_is_not_shown(gallery):
    whole, damaged = gallery.add(a_draw(1)), gallery.add(a_draw(2))
    (shard,) = (gallery.folder / damaged).glob("*.parquet")
    shard.write_bytes(flipped(shard.read_bytes(), shard.stat().st_size // 2))
    with pytest.raises(DamagedArtefact):
        gallery.picture(damaged, 0)
    (gallery.folder / damaged / "manifest.json").write_bytes(b"{")
    assert [one["id"] for one in gallery.page(None, 10)["draws"]] == [whole]


def test_a_draw_that_was_killed_half_way_is_not_there(gallery):
    name = gallery.add(a_draw())
    os.rename(gallery.folder / name, gallery.folder / f".{name}.tmp")
    assert gallery.page(None, 10) == {"draws": [], "next": None}


def test_a_removed_draw_is_gone(gallery):
    name = gallery.add(a_draw())
    gallery.remove(name)
    assert gallery.page(None, 10)["draws"] == [] and not list(gallery.folder.iterdir())
    for ask in (gallery.one, gallery.remove, lambda name: gallery.picture(name, 0)):
        with pytest.raises(NoDraw, match="there is no such draw"):
            ask(name)


def test_of_two_who_remove_a_draw_at_once_the_second_is_told(gallery, monkeypatch):
    name = gallery.add(a_draw())
    check = gallery._check

    def another_is_faster(name: str) -> None:
        check(name)
        os.rename(gallery.folder / name, gallery.folder / f".{name}.gone")

    monkeypatch.setattr(gallery, "_check", another_is_faster)
    with pytest.raises(NoDraw, match="there is no such draw. It may have been deleted"):
        gallery.remove(name)


@given(st.text() | st.sampled_from(["..", "../..", ".", "/etc", "..\\..", "20260101T000000-00000000/../..", "\0"]))
def test_no_name_leads_out_of_the_gallery(tmp_path_factory, name):
    gallery = Gallery(tmp_path_factory.getbasetemp() / "gallery-of-names")
    gallery.folder.mkdir(exist_ok=True)
    for ask in (gallery.one, gallery.remove, lambda name: gallery.picture(name, 0)):
        with pytest.raises(NoDraw):
            ask(name)


def test_a_picture_that_there_is_not_is_told(gallery):
    name = gallery.add(a_draw())
    with pytest.raises(NoDraw, match=f"the draw {name} has no picture 3; they run from 0 to 2"):
        gallery.picture(name, 3)
