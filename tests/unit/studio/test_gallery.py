"""Past draws: whole or not there, verified, newest first, with pictures that still say how they were drawn."""
from __future__ import annotations

import base64
import dataclasses
import errno
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio import streaming
from studio.gallery import NAME, Drawn, Gallery, NoDraw
from studio.versions import Version
from tests.tiny import flipped
from thousandwords.drawing import Settings
from thousandwords.files import CannotWrite, DamagedArtefact, read_manifest, write_manifest
from thousandwords.images import decode_png
from thousandwords.provenance import Provenance, provenance_of, with_provenance

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


def test_why_a_draw_was_not_kept_is_logged(tmp_path, caplog):
    (tmp_path / "gallery").write_text("a file, where a folder should be")
    drawn = a_draw()
    told = [{"png": base64.b64encode(with_provenance(picture, FACTS)), "words": [words], "score": 0.1}
            for picture, words in zip(drawn.pictures, drawn.words, strict=True)]  # fmt: skip
    version = Version("package", "models/package", "0f" * 32)
    assert streaming._keep(Gallery(tmp_path / "gallery"), version, told, [1, 2, 0], dataclasses.asdict(FACTS.settings)) is None
    assert "a draw was not kept in the gallery: " in caplog.text


def test_a_removed_draw_is_gone(gallery):
    name = gallery.add(a_draw())
    gallery.remove(name)
    assert gallery.page(None, 10)["draws"] == [] and not list(gallery.folder.iterdir())
    for ask in (gallery.one, gallery.remove, lambda name: gallery.picture(name, 0)):
        with pytest.raises(NoDraw, match="there is no such draw"):
            ask(name)


def test_a_draw_that_is_deleted_while_the_list_is_made_hides_no_other(gallery, monkeypatch):
    kept, deleted = gallery.add(a_draw(1)), gallery.add(a_draw(2))
    names = gallery.names()
    gallery.remove(deleted)
    monkeypatch.setattr(gallery, "names", lambda: names)
    assert [one["id"] for one in gallery.page(None, 10)["draws"]] == [kept]


def test_of_two_who_delete_a_draw_one_is_told_that_there_is_none(gallery, monkeypatch):
    name = gallery.add(a_draw())
    gallery.remove(name)
    monkeypatch.setattr(gallery, "_check", lambda name: None)
    with pytest.raises(NoDraw, match="there is no such draw"):
        gallery.remove(name)


def test_a_gallery_that_may_not_be_changed_says_so(gallery, monkeypatch):
    name = gallery.add(a_draw())

    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(CannotWrite, match="gallery cannot be written: Operation not permitted. See to it that you may write"):
        gallery.remove(name)


@pytest.mark.parametrize("change", [
    lambda facts: facts.pop("order"),
    lambda facts: facts["provenance"].update(colour="red"),
    lambda facts: facts.update(provenance=None),
])  # fmt: skip
def test_a_draw_that_another_version_of_this_code_kept_hides_no_other(gallery, change):
    whole, other = gallery.add(a_draw(1)), gallery.add(a_draw(2))
    manifest = read_manifest(gallery.folder / other)
    change(manifest["facts"])
    write_manifest(gallery.folder / other, {name: entry["rows"] for name, entry in manifest["files"].items()}, manifest["facts"])
    assert [one["id"] for one in gallery.page(None, 10)["draws"]] == [whole]
    for ask in (gallery.one, lambda name: gallery.picture(name, 0)):
        with pytest.raises(DamagedArtefact, match=f"the draw {other} was kept by another version of this code"):
            ask(other)


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
