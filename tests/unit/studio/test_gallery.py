"""The gallery: complete entries, verified, newest first; images with their provenance; search by text."""

import dataclasses
import errno
import os
import zipfile

import numpy as np
import pytest
import torch

from studio.data.gallery import NAME, Gallery, GalleryEntry, GallerySearch, NoSuchEntry
from tests.helpers.tiny_models import flipped
from thousandwords.core.files import CannotWrite
from thousandwords.core.manifest import DamagedArtefact, read_manifest, write_manifest
from thousandwords.data.images import decode_png, to_float
from thousandwords.inference.config import SamplingConfig
from thousandwords.inference.provenance import Provenance, read_provenance

PROVENANCE = Provenance("a <b>red</b> star", 7, 0, "0f" * 32, SamplingConfig(candidates=3, batch_size=8))


def make_entry(seed: int = 7, fixed_tokens: tuple[int, ...] | None = None) -> GalleryEntry:
    images = np.random.default_rng(seed).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    tokens = [[number] * 4 for number in range(3)]
    provenance = dataclasses.replace(PROVENANCE, seed=seed, fixed_tokens=fixed_tokens)
    return GalleryEntry(provenance, "package", tokens, images, [0.1, 0.3, 0.2], [1, 2, 0])


@pytest.fixture
def gallery(tmp_path):
    return Gallery(tmp_path / "gallery")


def readers(gallery: Gallery) -> tuple:
    return gallery.entry, gallery.remove, lambda name: gallery.image(name, 0)


def listed(gallery: Gallery) -> list[str]:
    return [entry["id"] for entry in gallery.page(None, 10)["entries"]]


def test_an_entry_is_listed_with_its_best_images_first(gallery):
    name = gallery.add(make_entry())
    (entry,) = gallery.page(None, 10)["entries"]
    assert NAME.fullmatch(name) and entry["id"] == name
    assert (entry["prompt"], entry["seed"], entry["candidates"]) == ("a <b>red</b> star", 7, 3)
    assert (entry["version"], entry["is_inpainted"]) == ("package", False)
    assert [(image["candidate"], image["score"]) for image in entry["best"]] == [(1, 0.3), (2, 0.2), (0, 0.1)]
    assert entry["best"][0]["url"] == f"/api/gallery/{name}/1.png"
    grids = [image["tokens"] for image in gallery.entry(name)["images"]]
    assert grids == [[[1, 1], [1, 1]], [[2, 2], [2, 2]], [[0, 0], [0, 0]]]


def test_an_image_is_unchanged_and_has_its_provenance(gallery):
    entry = make_entry(fixed_tokens=(-1, 1, 2, 3))
    name = gallery.add(entry)
    assert gallery.page(None, 1)["entries"][0]["is_inpainted"]
    for number in range(3):
        data = gallery.image(name, number)
        assert (decode_png(data) == entry.images[number]).all()
        assert read_provenance(data) == dataclasses.replace(entry.provenance, candidate=number)
    with pytest.raises(NoSuchEntry, match=f"the entry {name} has no image 3; its images are 0 to 2"):
        gallery.image(name, 3)
    stored = read_manifest(gallery.folder / name)["facts"]["provenance"]  # the key of earlier entries
    assert stored["given"] == [-1, 1, 2, 3] and "fixed_tokens" not in stored


def test_pages_hold_every_entry_once_newest_first(gallery):
    names = [f"2026010{day}T000000-{number:08x}" for day in (1, 2) for number in (1, 2, 3)]
    for name in names:
        os.rename(gallery.folder / gallery.add(make_entry()), gallery.folder / name)
    pages, before = [], None
    while True:
        page = gallery.page(before, 4)
        pages += [entry["id"] for entry in page["entries"]]
        if (before := page["next"]) is None:
            break
    assert pages == sorted(names, reverse=True)


def test_damaged_deleted_and_unfinished_entries_are_left_out_and_hide_no_other(gallery, monkeypatch):
    intact, damaged, deleted, unfinished = (gallery.add(make_entry(seed)) for seed in range(4))
    (shard,) = (gallery.folder / damaged).glob("*.parquet")
    shard.write_bytes(flipped(shard.read_bytes(), shard.stat().st_size // 2))
    with pytest.raises(DamagedArtefact):
        gallery.image(damaged, 0)
    (gallery.folder / damaged / "manifest.json").write_bytes(b"{")
    os.rename(gallery.folder / unfinished, gallery.folder / f".{unfinished}.tmp")  # its writer was killed
    names = gallery.names()
    gallery.remove(deleted)
    assert listed(gallery) == [intact] and not (gallery.folder / deleted).exists()
    for read in readers(gallery):
        with pytest.raises(NoSuchEntry, match="there is no such entry in the gallery"):
            read(deleted)
    monkeypatch.setattr(gallery, "names", lambda: names)  # it is deleted while a page is made
    assert listed(gallery) == [intact]


def test_the_same_request_has_one_entry_and_another_one_its_own(gallery):
    name, other = gallery.add(make_entry()), gallery.add(make_entry(fixed_tokens=(-1, 1, 2, 3)))
    assert gallery.add(make_entry()) == name and sorted(listed(gallery)) == sorted([name, other])
    gallery.remove(name)
    assert gallery.add(make_entry()) in listed(gallery)


def test_stars_select_entries_and_are_taken_away(gallery):
    starred, other = gallery.add(make_entry(1)), gallery.add(make_entry(2))
    gallery.star(starred, True)
    assert [entry["id"] for entry in gallery.page(None, 10, only_starred=True)["entries"]] == [starred]
    assert [gallery.entry(name)["is_starred"] for name in (starred, other)] == [True, False]
    gallery.star(starred, False)
    assert gallery.page(None, 10, only_starred=True)["entries"] == []
    assert gallery.image(starred, 0)  # its files are verified
    gallery.remove(starred)
    with pytest.raises(NoSuchEntry):
        gallery.star(starred, True)


def test_a_zip_file_has_the_images_of_entries_best_first(gallery):
    names = [gallery.add(make_entry(seed)) for seed in (1, 2)]
    archive = zipfile.ZipFile(gallery.zip_file(names))
    assert archive.namelist() == [
        f"a-b-red-b-star{number}/00{rank}.png" for number in ("-seed-1", "-2-seed-2") for rank in range(3)
    ]
    assert archive.read("a-b-red-b-star-2-seed-2/000.png") == gallery.image(names[1], 1)


def test_a_gallery_without_write_permission_says_so(gallery, monkeypatch):
    name = gallery.add(make_entry())

    def no_permission(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "rename", no_permission)
    with pytest.raises(CannotWrite, match="gallery cannot be written: Operation not permitted. Check that"):
        gallery.remove(name)


@pytest.mark.parametrize(
    "change",
    [
        lambda metadata: metadata.pop("order"),
        lambda metadata: metadata["provenance"].update(color="red"),
        lambda metadata: metadata.update(provenance=None),
    ],
)
def test_an_entry_of_another_version_of_this_code_hides_no_other(gallery, change):
    intact, other = gallery.add(make_entry(1)), gallery.add(make_entry(2))
    manifest = read_manifest(gallery.folder / other)
    change(manifest["facts"])
    files = {name: entry["rows"] for name, entry in manifest["files"].items()}
    write_manifest(gallery.folder / other, files, manifest["facts"])
    assert listed(gallery) == [intact]
    for read in (gallery.entry, lambda name: gallery.image(name, 0)):
        message = f"the entry {other} was written by another version of this code"
        with pytest.raises(DamagedArtefact, match=message):
            read(other)


@pytest.mark.parametrize(
    "name", ["", "x", "..", "../..", ".", "/etc", "..\\..", "20260101T000000-00000000/../..", "\0"]
)
def test_no_name_leads_out_of_the_gallery(gallery, name):
    gallery.folder.mkdir()
    for read in readers(gallery):
        with pytest.raises(NoSuchEntry):
            read(name)


def test_a_search_gives_the_scorers_own_order_by_the_best_images(gallery, scorer):
    assert GallerySearch(gallery).search(scorer, "a star", 10) == []
    for seed in range(6):
        gallery.add(make_entry(seed))
    names = gallery.names()
    pixels = to_float(np.stack([gallery.best_image(name) for name in names]))
    with torch.no_grad():
        scores = scorer.score(pixels, ["a blue circle"] * len(names))
    expected = [names[index] for index in scores.argsort(descending=True).tolist()]
    assert GallerySearch(gallery).search(scorer, "a blue circle", 10) == expected
    assert GallerySearch(gallery).search(scorer, "a blue circle", 2) == expected[:2]
    assert [entry["id"] for entry in gallery.entries(expected)] == expected


def test_new_entries_are_found_and_deleted_or_damaged_ones_are_not(gallery, scorer):
    search, deleted, damaged = GallerySearch(gallery), gallery.add(make_entry(1)), gallery.add(make_entry(2))
    assert set(search.search(scorer, "a star", 10)) == {deleted, damaged}
    gallery.remove(deleted)
    new = gallery.add(make_entry(3))
    assert set(search.search(scorer, "a star", 10)) == {damaged, new}
    (gallery.folder / damaged / "manifest.json").write_bytes(b"{")
    assert GallerySearch(gallery).search(scorer, "a star", 10) == [new]
    assert gallery.entries([damaged, deleted, new]) == gallery.entries([new])
